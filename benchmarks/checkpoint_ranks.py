"""What `benchmarks/checkpoint.py` lets two gloo processes do: save and load one state in several ways, with times.

Started by torchrun with a JSON file of {"kind": "store" or "deepspeed", "base", "folder", "moments", "repeat"}; rank 0
writes {name: seconds or bytes} to `times.json` in the folder. Every save ends with its files flushed to the disk,
for those peers that don't do it themselves by an fsync of each file inside the measured time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

from cpt_dist.checkpoint.saver import Saver
from cpt_dist.checkpoint.store import CheckpointStore, Probe
from cpt_dist.checkpoint.streamed_model import logits
from cpt_dist.engine.flat_shard import FlatShard
from cpt_dist.files import file_checksum, sync_folder

PROBE_TOKENS = 64


def timed(action: Callable[[], Any]) -> float:
    """Seconds that all ranks together need for `action`."""
    dist.barrier()
    start = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - start


def flush(folder: Path) -> None:
    """fsync every file below a folder (rank 0 for all)."""
    if dist.get_rank() == 0:
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
    dist.barrier()


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sharded_state(base: Path, moments: bool) -> dict[str, torch.Tensor]:
    """This rank's half of each flattened weight of the model in `base`, and of as many moments."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    state: dict[str, torch.Tensor] = {}
    with safe_open(base / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            whole = file.get_tensor(name)
            width = -(-whole.numel() // world_size)
            part = whole.flatten()[rank * width : (rank + 1) * width].clone()
            kinds = ["model", *(["optimizer.exp_avg", "optimizer.exp_avg_sq"] if moments else [])]
            for kind in kinds:
                local = part if kind == "model" else part.clone()
                state[f"{kind}.{name}"] = FlatShard(local, tuple(whole.shape), rank * width)
    return state


def local(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same without the wrapper, for torch.save."""
    return {name: value.local for name, value in state.items() if isinstance(value, FlatShard)}


def measure_store(job: dict[str, Any]) -> dict[str, float]:
    """Our store beside torch.save and stock DCP. The last checkpoint of ours stays in `folder`/checkpoints."""
    base, folder = Path(job["base"]), Path(job["folder"])
    state = sharded_state(base, job["moments"])
    scratch, rank = folder / "scratch", dist.get_rank()
    times: dict[str, float] = {}

    def best(name: str, action: Callable[[], Any], after: Callable[[], Any] = lambda: None) -> None:
        seconds = []
        for _ in range(job["repeat"]):
            seconds.append(timed(action))
            after()
        times[name] = min(seconds)

    def fresh() -> None:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        dist.barrier()

    fresh()

    def torch_save() -> None:
        with open(scratch / f"{rank}.pt", "wb") as handle:
            torch.save(local(state), handle)
            handle.flush()
            os.fsync(handle.fileno())

    def torch_load() -> None:
        loaded = torch.load(scratch / f"{rank}.pt", weights_only=True)
        for name, value in local(state).items():
            value.copy_(loaded[name])

    best("torch.save", torch_save)
    times["torch.save bytes"] = float(size(scratch))
    best("torch.load", torch_load)
    fresh()
    best("dcp.save", lambda: dcp.save(state, storage_writer=dcp.FileSystemWriter(scratch / "dcp", sync_files=True)))
    times["dcp bytes"] = float(size(scratch))

    def dcp_save_and_checksum() -> None:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(scratch / "dcp", sync_files=True))
        for path in (scratch / "dcp").glob(f"__{rank}_*"):
            file_checksum(path)
        sync_folder(scratch / "dcp")

    best("dcp.save and checksums", dcp_save_and_checksum)
    best("dcp.load", lambda: dcp.load(state, checkpoint_id=scratch / "dcp"))
    fresh()
    ids = torch.randint(0, 1000, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0))
    probe = Probe(ids, logits(base, ids)) if rank == 0 else None
    store = CheckpointStore(folder / "checkpoints")
    synchronous = Saver(store, asynchronous=False)
    best("save", lambda: synchronous.save(1, state, {}, probe))
    times["bytes"] = float(size(store.path(1)))

    def load() -> None:
        store.verify(1)
        store.load(1, state)

    best("load", load)
    behind = Saver(store, asynchronous=True)

    def prepare() -> None:
        behind.prepare(state)
        behind.wait()

    times["prepare"] = timed(prepare)
    stalls = []
    for _ in range(job["repeat"] + 1):
        stalls.append(timed(lambda: behind.save(1, state, {}, probe)))
        behind.wait()
        if not behind.reports()[-1].asynchronous:
            raise SystemExit("there was too little memory for the copy of the state; free some and start again")
    times["first stall"], times["stall"] = stalls[0], min(stalls[1:])
    fresh()
    return times


def measure_deepspeed(job: dict[str, Any]) -> dict[str, float]:
    """DeepSpeed's own ZeRO-3 save and load; the checkpoint stays in `folder`/deepspeed."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    adam = {"type": "AdamW", "params": {"torch_adam": True, "lr": 1e-4}}
    # Without moments to save, SGD; its bf16 copy of the weights isn't saved by ZeRO-3 either.
    settings: dict[str, Any] = {
        "train_batch_size": 2,
        "zero_optimization": {"stage": 3},
        "optimizer": adam if job["moments"] else {"type": "SGD", "params": {"lr": 1e-4}},
        "bf16": {"enabled": not job["moments"]},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    if job["moments"]:
        for master in engine.optimizer.fp32_partitioned_groups_flat:
            state = engine.optimizer.optimizer.state[master]
            state |= {"step": torch.tensor(1.0), "exp_avg": master.clone(), "exp_avg_sq": master.clone()}
    folder = Path(job["folder"]) / "deepspeed"

    def save() -> None:
        engine.save_checkpoint(folder)
        flush(folder)

    times = {"deepspeed save": min(timed(save) for _ in range(job["repeat"])), "deepspeed bytes": float(size(folder))}
    times["deepspeed load"] = min(timed(lambda: engine.load_checkpoint(folder)) for _ in range(job["repeat"]))
    return times


def main() -> None:
    """Run the job of the JSON file on both ranks."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    times = {"store": measure_store, "deepspeed": measure_deepspeed}[job["kind"]](job)
    if dist.get_rank() == 0:
        (Path(job["folder"]) / "times.json").write_text(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
