"""Models that rank 0 alone loads, on four ranks, compared with the same models loaded whole.

Started by torchrun with a folder of model folders; each rank writes `found-<rank>.json` there: name of a model ->
whether it was without weights before it was sharded, and the names of tensors that are other ones after. The end of a
model's name says by which engine.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch.distributed.tensor import DTensor

from cpt_dist.config import CptConfig, EngineConfig, ModelConfig
from cpt_dist.engine import distributed
from cpt_dist.engine.build import build_engine
from cpt_dist.engine.weights_from_first import lacks_weights
from cpt_dist.errors import UserError
from cpt_dist.model.load import load_model
from cpt_dist.training.load_together import load_for

COMPUTE = ("cpu", torch.float32)
ENGINES = {"fsdp": EngineConfig(), "hsdp": EngineConfig(shard_size=2), "zero": EngineConfig(name="zero")}


def whole(tensor, zero):
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return safe_get_full_fp32_param(tensor) if zero and isinstance(tensor, torch.nn.Parameter) else tensor.detach()


def others(model, reference, zero):
    """Names of the parameters and buffers that aren't bit-equal to those of a model that was loaded whole."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = {name: whole(tensor, zero) for name, tensor in tensors}
    expected = {name: tensor.detach() for name, tensor in (*reference.named_parameters(), *reference.named_buffers())}
    return sorted(
        {name for name, tensor in expected.items() if name not in found or not tensor.equal(found[name])}
        | (found.keys() - expected.keys())
    )


def find(world, folder, engine):
    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder)), engine=engine)
    try:
        model = load_for(world, config.model, config.kernels, COMPUTE, sharded=True)
    except UserError as error:
        return {"problems": error.problems}
    lacking = lacks_weights(model)
    built = build_engine(model, config, world, torch.float32)
    different = others(built.model, load_model(config.model), engine.name == "zero")
    logits = built.logits(torch.arange(40) % 7)
    return {"lacking": lacking, "different": different, "logits": float(logits.logsumexp(-1).sum())}


def main():
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    root = Path(sys.argv[1])
    found = {
        folder.name: find(world, folder, ENGINES[folder.name.split(", ")[-1]])
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    (root / f"found-{world.rank}.json").write_text(json.dumps(found))
    distributed.stop()


if __name__ == "__main__":
    main()
