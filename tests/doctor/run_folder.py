"""Run directories as training writes them, made by hand: healthy, and with what a test changes."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

from cpt_dist.config import CptConfig, SourceConfig, StageConfig
from cpt_dist.doctor.case import read_case, stage_places
from cpt_dist.schedules import run_learning_rate

NOW = 2_000_000.0
NUM_STEPS = 200
SEQ_LEN, BATCH = 64, 256


def configured(run_dir):
    """200 steps of 256 tokens over a domain and a general source."""
    config = CptConfig(run_dir=str(run_dir))
    config.data.sources = {"law": SourceConfig(raw=["law"]), "wiki": SourceConfig(raw=["wiki"], role="replay")}
    config.model.path, config.data.shards = "model", "shards"
    tokens = str(NUM_STEPS * BATCH)
    mixture = {"law": 0.9, "wiki": 0.1}
    config.stages = [StageConfig(tokens=tokens, seq_len=SEQ_LEN, batch_tokens=str(BATCH), mixture=mixture)]
    config.checkpoint.every_steps = 50
    return config


def losses(num_steps, start=3.0, end=2.0, noise=0.01, seed=0):
    """A loss that falls steadily."""
    rng = random.Random(seed)
    return [start + (end - start) * step / NUM_STEPS + rng.gauss(0, noise) for step in range(1, num_steps + 1)]


def step_records(config, values, **changes):
    """Lines of kind step with a domain loss each; `changes` are values or functions of the step."""
    curve = run_learning_rate(config)
    records = []
    for step, value in enumerate(values, start=1):
        samples = step * BATCH // SEQ_LEN
        places = stage_places(config)
        index, done = next((i, p) for i, p in enumerate(places) if samples <= p.start + p.num_samples)
        record = {
            "kind": "step",
            "step": step,
            "stage": done.stage.name,
            "samples": samples,
            "loss": value,
            "loss_by_source": {"law": value, "wiki": 2.5},
            "lr": curve(index, (samples - done.start) / done.num_samples),
            "grad_norm": 1.0,
            "tokens": step * BATCH,
            "seconds": 2.0,
            "data_wait_share": 0.01,
            "straggler": None,
            "memory_bytes": 10**9,
            "planned_tokens": {"law": 0.9 * step * BATCH, "wiki": 0.1 * step * BATCH},
            "realised_tokens": {"law": 0.9 * step * BATCH, "wiki": 0.1 * step * BATCH},
            "time": NOW - 2.0 * (len(values) - step),
        }
        records.append(record | {name: new(step) if callable(new) else new for name, new in changes.items()})
    return records


def evaluation(step, law, wiki):
    return {
        "kind": "evaluation",
        "step": step,
        "sources": {"law": {"bits_per_byte": law}, "wiki": {"bits_per_byte": wiki}},
    }


def save(step, stall=0.1):
    return {"kind": "checkpoint", "step": step, "stall_seconds": stall, "write_seconds": 1.0, "asynchronous": True}


def heartbeat(rank=0, **changes):
    beat = {
        "rank": rank,
        "node": f"node{rank}",
        "start": "1",
        "step": 100,
        "phase": "data",
        "seconds": 1.0,
        "time": NOW,
    }
    return beat | changes


def write(folder, config, steps, *, evaluations=None, saves=None, beats=None, others=(), world_size=1):
    """A run directory; what isn't given is healthy."""
    folder = Path(folder)
    (folder / "starts").mkdir(parents=True)
    (folder / "health").mkdir()
    text = json.dumps(asdict(config))  # which is YAML
    for name in ("config.yaml", "starts/0001.yaml"):
        (folder / name).write_text(text)
    last = steps[-1]["step"] if steps else 0
    if evaluations is None:
        evaluations = [evaluation(0, 1.0, 1.0), evaluation(last, 0.9, 1.005)]
    if saves is None:
        every = config.checkpoint.every_steps
        saves = [save(step) for step in range(every, last + 1, every)] if every else []
    start = {"kind": "run", "step": 0, "num_steps": NUM_STEPS, "world_size": world_size}
    records = [start, *sorted([*steps, *evaluations, *saves, *others], key=lambda record: record["step"])]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text)
    for beat in [heartbeat()] if beats is None else beats:
        (folder / "health" / f"rank-{beat['rank']:05d}.json").write_text(json.dumps(beat))
    (folder / "logs" / "1.0").mkdir(parents=True)
    (folder / "logs" / "1.0" / "rank-00000.out").write_text("main step 1/200 loss 3.0\n")
    return folder


def case_of(folder, config, **changes):
    """The case as launch/doctor.py reads it."""
    return read_case(replace(config, run_dir=str(folder), **changes), NOW)
