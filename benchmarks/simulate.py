"""The sample order at the scale of a cluster, without one: python benchmarks/simulate.py [--ranks 16384] [--small]

10 T tokens in 200,000 shards of 100 sources, one warm-up and one main stage, read by 16,384 virtual ranks. The order,
the slots and the loader are those of training; only the tokens are zeros from memory. Every figure is measured here,
and everything that is said to be exact is compared. Writes benchmarks/results/simulate.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from cpt_dist.config import StageConfig
from cpt_dist.data.loader import StepLoader, rank_slots
from cpt_dist.data.order import SampleOrder
from cpt_dist.files import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "simulate.json"
SEQ_LEN = 4096
DOCUMENT_TOKENS = 1000
NUM_REPEATS = 5
NUM_WINDOW_BATCHES = 8
POINTS = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(eq=False)
class ZeroSource:
    """A source as its manifest describes it, whose tokens are all 0 and whose documents are equally long."""

    name: str
    shard_tokens: np.ndarray
    fingerprint: str
    role: str = "domain"
    plan_folder: None = None
    _offsets: dict[int, np.ndarray] = field(default_factory=dict)

    def tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(stop - start, dtype=np.uint32)

    def doc_offsets(self, shard: int) -> np.ndarray:
        if shard not in self._offsets:
            bounds = np.arange(0, self.shard_tokens[shard], DOCUMENT_TOKENS, dtype=np.uint64)
            self._offsets = {shard: np.append(bounds, np.uint64(self.shard_tokens[shard]))}
        return self._offsets[shard]

    def cuts(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """No places to cut."""
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def loss_spans(self, shard: int) -> None:
        return None

    def doc_ids(self, shard: int) -> np.ndarray:
        return np.broadcast_to(np.uint8(0), (len(self.doc_offsets(shard)) - 1, 16))

    def documents(self, shard: int) -> None:
        return None


def manifest(num_sources: int, num_shards: int, num_tokens: int) -> list[ZeroSource]:
    """Sources of Zipf-distributed sizes whose shards differ by up to a tenth, so that last rows are of all lengths."""
    generator = np.random.default_rng(1)
    sizes = 1 / np.arange(1, num_sources + 1)
    shards = np.maximum(1, np.round(sizes / sizes.sum() * num_shards)).astype(int)
    shards[0] += num_shards - shards.sum()
    mean = num_tokens // num_shards
    return [
        ZeroSource(f"source-{number:03d}", generator.integers(mean * 9 // 10, mean * 11 // 10, count), f"{number:032x}")
        for number, count in enumerate(shards)
    ]


def stage_configs(sources: list[ZeroSource], num_tokens: int, ranks: int) -> list[StageConfig]:
    """A tenth with weights that move from equal to those of the sizes, then the sizes; a row for each rank a step."""
    total = sum(int(source.shard_tokens.sum()) for source in sources)
    shares = {source.name: int(source.shard_tokens.sum()) / total for source in sources}
    ramp = {name: [[0.0, 1 / len(sources)], [1.0, share]] for name, share in shares.items()}
    batch = str(ranks * SEQ_LEN)
    return [
        StageConfig("warm-up", str(num_tokens // 10), SEQ_LEN, batch, ramp),
        StageConfig("main", str(num_tokens * 9 // 10), SEQ_LEN, batch, dict(shares)),
    ]


def timed(action: Any, repeats: int = NUM_REPEATS) -> float:
    """Median of CPU seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        action()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def exactness(order: SampleOrder, first: int, ranks: int) -> dict[str, bool]:
    """What must hold around sample `first`, compared on whole batches."""
    batch = order.stages[order.stage_of(first)].batch_samples
    count = batch * min(NUM_WINDOW_BATCHES, (order.num_samples - first) // batch)
    samples = order.samples(first, count)
    read = np.stack([samples.source, samples.row, samples.epoch], axis=1)
    prefixes = np.stack([order.counts(first + at) for at in range(0, count + 1, batch)])
    in_batches = np.stack(
        [
            np.bincount(samples.source[at : at + batch], minlength=len(order.source_names))
            for at in range(0, count, batch)
        ]
    )
    slots = np.concatenate([rank_slots(order.seed, first, batch, rank, ranks) for rank in range(ranks)])
    one_by_one = [order.sample(first + at) for at in range(0, count, count // 5)]
    names = order.source_names
    return {
        "counts_sum_to_n": bool((prefixes.sum(axis=1) == first + np.arange(0, count + 1, batch)).all()),
        "counts_never_fall": bool((np.diff(prefixes, axis=0) >= 0).all()),
        "samples_are_the_counts": bool((np.diff(prefixes, axis=0) == in_batches).all()),
        "no_row_twice_in_window": len(np.unique(read, axis=0)) == count,
        "every_slot_has_one_rank": bool((np.sort(slots) == np.arange(batch)).all()),
        "one_by_one_is_the_same": one_by_one
        == [(names[s], r, e) for s, r, e in read[np.arange(0, count, count // 5)].tolist()],
    }


def at_point(
    sources: list[ZeroSource], stages: list[StageConfig], order: SampleOrder, point: float, ranks: int
) -> dict:
    """Times and checks at a share of the run; the loader is made anew, as a resumed rank does it."""
    num_steps = order.num_samples // order.stages[0].batch_samples
    step = min(int(point * num_steps), num_steps - NUM_WINDOW_BATCHES)
    first = step * order.stages[0].batch_samples
    stage = order.stage_of(first)
    rank = (step * 7919) % ranks

    def first_batch() -> None:
        loader = StepLoader(order, sources, stage=stage, rank=rank, world_size=ranks, first_sample=first)
        next(iter(loader))

    def cold_resume() -> None:
        # Plans of rows are kept with a source object, so a process that has just begun is a new one of each.
        begun = [ZeroSource(source.name, source.shard_tokens, source.fingerprint) for source in sources]
        SampleOrder.from_sources(stages, begun, seed=order.seed).samples(first, 1)

    return {
        "progress": point,
        "step": step,
        "sample": first,
        "cold_resume_seconds": timed(cold_resume),
        "samples_of_a_global_batch_seconds": timed(lambda: order.samples(first, order.stages[stage].batch_samples)),
        "slots_of_a_rank_seconds": timed(lambda: rank_slots(order.seed, first, ranks, rank, ranks)),
        "new_loader_and_first_batch_seconds": timed(first_batch),
        "exact": exactness(order, first, ranks),
    }


def simulate(num_sources: int, num_shards: int, num_tokens: int, ranks: int) -> dict[str, Any]:
    """All measurements as JSON values."""
    sources = manifest(num_sources, num_shards, num_tokens)
    stages = stage_configs(sources, num_tokens, ranks)
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    order = SampleOrder.from_sources(stages, sources, seed=7)
    points = [at_point(sources, stages, order, point, ranks) for point in POINTS]
    gc.collect()
    return {
        "setting": {
            "tokens": int(sum(source.shard_tokens.sum() for source in sources)),
            "shards": num_shards,
            "sources": num_sources,
            "ranks": ranks,
            "seq_len": SEQ_LEN,
            "samples": order.num_samples,
            "steps": sum(stage.num_steps for stage in order.stages),
        },
        "machine": {"python": platform.python_version(), "numpy": np.__version__, "processor": platform.machine()},
        "start_seconds": timed(lambda: SampleOrder.from_sources(stages, sources, seed=7)),
        "memory_bytes": process.memory_info().rss - before,
        "state_bytes": len(json.dumps(order.state(order.num_samples // 2))),
        "quota_error_bound_samples": [order.error_bound(stage) for stage in range(len(stages))],
        "points": points,
    }


def show(result: dict[str, Any]) -> None:
    """The measurements as a table."""
    console, setting = Console(), result["setting"]
    console.print(
        f"{setting['tokens']:,} tokens, {setting['shards']:,} shards, {setting['sources']} sources, "
        f"{setting['ranks']:,} ranks, {setting['samples']:,} samples in {setting['steps']:,} steps"
    )
    console.print(
        f"start {result['start_seconds'] * 1e3:.0f} ms, memory {result['memory_bytes'] / 1e6:.1f} MB, "
        f"state {result['state_bytes']:,} bytes (CPU time of one core, medians of {NUM_REPEATS})"
    )
    columns = ["progress", "sample", "cold resume", "global batch", "slots", "loader + batch", "exact"]
    table = Table()
    for column in columns:
        table.add_column(column, justify="right")
    for point in result["points"]:
        keys = ("cold_resume", "samples_of_a_global_batch", "slots_of_a_rank", "new_loader_and_first_batch")
        times = [f"{point[f'{key}_seconds'] * 1e3:.2f} ms" for key in keys]
        wrong = [name for name, holds in point["exact"].items() if not holds]
        table.add_row(f"{point['progress']:.0%}", f"{point['sample']:,}", *times, ", ".join(wrong) or "yes")
    console.print(table)


def main() -> None:
    """Run, print, write; leaves with 1 where something that must be exact is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=16384)
    parser.add_argument(
        "--small", action="store_true", help="1 G tokens, 200 shards, 10 sources: a test of this program"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    size = (10, 200, 10**9) if arguments.small else (100, 200_000, 10**13)
    result = simulate(*size, arguments.ranks)
    show(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    if not all(all(point["exact"].values()) for point in result["points"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
