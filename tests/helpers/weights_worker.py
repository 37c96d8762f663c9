"""Models that rank 0 alone loads, on four ranks, compared with the same models loaded whole.

Started by torchrun with a folder of model folders; each rank writes `found-<rank>.json` there: name of a model ->
whether it was without weights before it was sharded, and the names of tensors that are other ones after. With "copies"
in its name a model is spread in two copies (HSDP).
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from cpt_dist.config import CptConfig, EngineConfig, ModelConfig
from cpt_dist.engine import distributed
from cpt_dist.engine.build import build_engine
from cpt_dist.engine.weights_from_first import lacks_weights
from cpt_dist.errors import UserError
from cpt_dist.model.load import load_model
from cpt_dist.training.load_together import load_for

COMPUTE = ("cpu", torch.float32)


def others(model, reference):
    """Names of the parameters and buffers that aren't bit-equal to those of a model that was loaded whole."""
    found = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in found.items()}
    expected = {name: tensor.detach() for name, tensor in (*reference.named_parameters(), *reference.named_buffers())}
    return sorted(
        {name for name, tensor in expected.items() if name not in whole or not tensor.equal(whole[name])}
        | (whole.keys() - expected.keys())
    )


def find(world, folder, shard_size):
    engine = EngineConfig(shard_size=shard_size)
    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder)), engine=engine)
    try:
        model = load_for(world, config.model, config.kernels, COMPUTE, by_fsdp=True)
    except UserError as error:
        return {"problems": error.problems}
    lacking = lacks_weights(model)
    built = build_engine(model, config, world, torch.float32)
    different = others(built.model, load_model(config.model))
    logits = built.logits(torch.arange(40) % 7)
    return {"lacking": lacking, "different": different, "logits": float(logits.logsumexp(-1).sum())}


def main():
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    root = Path(sys.argv[1])
    found = {
        folder.name: find(world, folder, 2 if "copies" in folder.name else world.size)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    (root / f"found-{world.rank}.json").write_text(json.dumps(found))
    distributed.stop()


if __name__ == "__main__":
    main()
