"""FSDP2 leaves the model of one process as it is: the same bits as with its sharding, and no copies."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from cpt_dist.config import CptConfig, ModelConfig, StageConfig
from cpt_dist.data.batch import Batch
from cpt_dist.engine import distributed, fsdp
from cpt_dist.engine.build import build_engine
from cpt_dist.model.load import load_model
from tests.helpers import models


def batch_of(seed):
    """One row of 24 tokens in two documents."""
    ids = torch.randint(0, 1001, (24,), generator=torch.Generator().manual_seed(seed))
    borders = torch.tensor([0, 10, 24], dtype=torch.int32)
    none, zero = torch.empty(2, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    doc_ids = torch.zeros(2, 16, dtype=torch.uint8)
    return Batch(ids, borders, doc_ids, borders.diff(), zero, zero, torch.tensor([0, 24]), zero, zero, *[none] * 3)


@pytest.fixture
def world():
    yield distributed.start(CptConfig().engine)
    distributed.stop()


def trained(world, folder):
    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder)))
    config.stages = [StageConfig(tokens="1", batch_tokens="1")]
    engine = build_engine(load_model(config.model), config, world, torch.float32)
    engine.context.enter(config, 0)
    norms = []
    for step in range(3):
        engine.forward_backward(batch_of(2 * step), 44, False)
        engine.forward_backward(batch_of(2 * step + 1), 44, True)
        norms.append(engine.step(1e-2))
    logits = engine.logits(torch.arange(9))
    return norms, logits, engine.state_tensors()


def test_one_process_trains_unsharded_to_the_bits_of_fsdp2(world, tmp_path, monkeypatch):
    folder = models.tiny_llama(tmp_path)
    norms, logits, state = trained(world, folder)
    assert not any(isinstance(tensor, DTensor) for tensor in state.values())
    monkeypatch.setattr(fsdp, "needs_sharding", lambda *_: True)
    sharded_norms, sharded_logits, sharded = trained(world, folder)
    assert all(isinstance(tensor, DTensor) for tensor in sharded.values())
    assert norms == sharded_norms
    assert torch.equal(logits, sharded_logits)
    assert state.keys() == sharded.keys()
    assert all(torch.equal(tensor, sharded[name].full_tensor()) for name, tensor in state.items())
