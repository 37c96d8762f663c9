"""Speed of the data plane beside its peers: one job, one core each, the same real tokens.

    python benchmarks/stream.py [--quick] [--shards FOLDER] [--cache FOLDER] [--peer NAME ...]

A weighted mixture of four sources, packed to 4096 and 8192, given as int64 input_ids with document lengths: tokens per
CPU second (median of 5 runs, or 7 without --quick); CPU seconds from nothing to the first sample, and to the one in
the middle, of a run of 1e9 samples; resident memory added by then. CPU seconds are measured, not wall time, so other
work on the machine disturbs little. FOLDER of --shards has sources written by launch/prepare.py (make demo leaves
some). A peer whose cost grows with the number of samples is measured at a smaller number and scaled up in proportion;
the row says from where.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS, peer_python
from cpt_dist.config import StageConfig
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.shard_writer import Document, Part, write_shard
from cpt_dist.data.shards import FORMAT, Source
from cpt_dist.files import fingerprint, write_json

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = [0.4, 0.3, 0.2, 0.1]
NUM_SAMPLES = 10**9
MICRO_BATCH = 8
BATCH_ROWS = 64
PEER_SAMPLES = {"megatron": 10**6, "datasets": 20_000}
"""Samples at which a peer is measured that materialises or replays; the others are measured at 1e9."""


def make_sources(folders: list[Path], work: Path) -> list[dict[str, str]]:
    """Four sources from the prepared ones, each with every second document of one of the two largest; also as .npy."""
    given = sorted((Source.open(folder) for folder in folders), key=lambda source: -source.num_tokens)
    result = []
    for number in range(4):
        source, folder = given[number % min(2, len(given))], work / "shards" / f"source{number}"
        offsets = source.doc_offsets(0).astype(np.int64)
        part = Part(np.uint16)
        for index in range(number // 2, len(offsets) - 1, 2):
            ids = source.tokens(0, int(offsets[index]), int(offsets[index + 1]))
            part.add(Document(source.doc_ids(0)[index].tobytes(), "", 1, "raw", index, None), ids)
        folder.mkdir(parents=True, exist_ok=True)
        entry = write_shard(folder / "shard-00000.safetensors", part)
        manifest: dict[str, Any] = {"format": FORMAT, "source": folder.name, "role": "domain", "licence": "none"}
        manifest["tokenizer"] = source.manifest["tokenizer"]
        manifest |= {"tokens": part.num_tokens, "documents": len(part.documents), "shards": [entry], "held_out": []}
        write_json(folder / "manifest.json", manifest | {"fingerprint": fingerprint(manifest)})
        tokens, ends = np.concatenate(part.tokens), np.cumsum([0, *map(len, part.tokens)])
        paths = {"tokens": str(work / f"tokens{number}.npy"), "offsets": str(work / f"offsets{number}.npy")}
        np.save(paths["tokens"], tokens)
        np.save(paths["offsets"], ends)
        result.append({**paths, "shards": str(folder)})
    return result


def resident_bytes() -> int:
    """Resident memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def own_job(job: dict[str, Any]) -> dict[str, Any]:
    """What `peer_jobs.py` measures, with this project's loader; labels, positions and document ids come along."""
    before, begin = resident_bytes(), time.process_time()
    sources = [Source.open(Path(source["shards"])) for source in job["sources"]]
    mixture = {source.name: weight for source, weight in zip(sources, WEIGHTS, strict=True)}
    rows, length = job["batch_rows"], job["seq_len"]
    stage = StageConfig(
        tokens=str(job["num_samples"] * length), seq_len=length, batch_tokens=str(rows * length), mixture=mixture
    )
    order = SampleOrder.from_sources([stage], sources, seed=1, packing=job["packing"])
    first = job["at"] // rows * rows
    steps = iter(StepLoader(order, sources, stage=0, micro_batch=MICRO_BATCH, first_sample=first))
    next(steps)
    result: dict[str, Any] = {"seconds": time.process_time() - begin, "bytes": resident_bytes() - before, "rates": []}
    for _ in range(job["repeats"]):
        tokens, begin = 0, time.process_time()
        while tokens < job["tokens"]:
            tokens += sum(batch.num_tokens for batch in next(steps))
        result["rates"].append(tokens / (time.process_time() - begin))
    return result


def bare_gather(job: dict[str, Any]) -> dict[str, Any]:
    """Rows at random places of one mapped file, copied into one int64 array, and nothing else."""
    tokens = np.asarray(np.load(job["sources"][0]["tokens"], mmap_mode="r"))
    length, rates = job["seq_len"], []
    row = np.empty(length, dtype=np.int64)
    starts = np.random.default_rng(0).integers(0, len(tokens) - length, job["tokens"] // length).tolist()
    for _ in range(job["repeats"]):
        begin = time.process_time()
        for start in starts:
            row[:] = tokens[start : start + length]
        rates.append(len(starts) * length / (time.process_time() - begin))
    return {"rates": rates}


def run_job(command: list[str], job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run a job in a process of its own with one thread; RuntimeError with its last words where it fails."""
    path = work / "job.json"
    path.write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        result = subprocess.run(
            [*command, str(path)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=job["timeout"]
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {job['timeout']} s") from error
    if result.returncode or not result.stdout.strip():
        raise RuntimeError((result.stderr.strip().splitlines() or ["no output"])[-1][:200])
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run everything, print the table and write benchmarks/results/stream.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and runs: under 3 minutes once installed")
    parser.add_argument("--shards", type=Path, default=ROOT / "runs" / "cache" / "shards")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache" / "peers")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only this peer (repeatable)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "stream.json")
    parser.add_argument("--own", choices=["own_job", "bare_gather"], help=argparse.SUPPRESS)
    parser.add_argument("job", nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        job = json.loads(Path(arguments.job).read_text())
        print(json.dumps({"own_job": own_job, "bare_gather": bare_gather}[arguments.own](job)))
        return
    folders = [path.parent for path in sorted(arguments.shards.glob("*/manifest.json"))]
    if not folders:
        sys.exit(f"error: no prepared source in '{arguments.shards}'; run `make demo` first, or give --shards=FOLDER")
    work = arguments.cache / "stream-work"
    work.mkdir(parents=True, exist_ok=True)
    Benchmark(arguments, make_sources(folders, work), work).run()


class Benchmark:
    """All measurements and the rows that they give."""

    def __init__(self, arguments: argparse.Namespace, sources: list[dict[str, str]], work: Path) -> None:
        self.arguments, self.work = arguments, work
        separator = json.loads((Path(sources[0]["shards"]) / "manifest.json").read_text())["tokenizer"]["separator_id"]
        self.common = {
            "sources": sources,
            "weights": WEIGHTS,
            "separator": separator,
            "repeats": 5 if arguments.quick else 7,
            "tokens": 2_000_000 if arguments.quick else 20_000_000,
            "timeout": 90 if arguments.quick else 600,
            "work": str(work),
            "packing": "concat",
            "batch_rows": BATCH_ROWS,
            "at": 0,
            "num_samples": NUM_SAMPLES,
            "seq_len": 4096,
        }
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def own(self, kind: str = "own_job", **changes: Any) -> dict[str, Any]:
        """This project's side."""
        command = [sys.executable, "-m", "benchmarks.stream", "--own", kind]
        return run_job(command, {**self.common, **changes}, self.work)

    def row(self, metric: str, unit: str, ours: float, peer: float | None, name: str, higher: bool) -> None:
        """Add a row; ratio > 1 means that ours is better, None that the peer has no value."""
        ratio = None if not peer else (ours / peer if higher else peer / max(ours, 1e-9))
        self.rows.append(
            {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio}
        )

    def run(self) -> None:
        """Measure ours, then each peer, print and write."""
        mine: dict[tuple[str, int], float] = {}
        for length in (4096, 8192):
            bare = statistics.median(self.own("bare_gather", seq_len=length)["rates"])
            for packing in ("concat", "best_fit"):
                mine[packing, length] = statistics.median(self.own(seq_len=length, packing=packing)["rates"])
                what = f"tokens per CPU second, {packing}, {length}"
                self.row(what, "tokens/cpu-s", mine[packing, length], bare, "bare gather", True)
        once = {"repeats": 0, "batch_rows": MICRO_BATCH}
        begun, resumed = self.own(**once), self.own(**once, at=NUM_SAMPLES // 2)
        for name in self.arguments.peer or list(PEERS):
            try:
                self.peer(name, mine, begun, resumed)
            except RuntimeError as error:
                self.notes.append(f"{name}: {error}")
                self.rows.append(
                    {"metric": "all", "unit": "", "ours": None, "peer": None, "peer_name": name, "ratio": None}
                )
        self.report()

    def peer(self, name: str, mine: dict[tuple[str, int], float], begun: dict, resumed: dict) -> None:
        """Every row of one peer; one that fails at a part gets a note and no value there."""
        short = name.split()[0].split("-")[0]
        python = peer_python(name, self.arguments.cache)
        command = [str(python), str(ROOT / "benchmarks" / "peer_jobs.py")]
        num_samples = PEER_SAMPLES.get(short, NUM_SAMPLES)
        job = {**self.common, "peer": short, "num_samples": num_samples}

        def measure(what: str, **changes: Any) -> dict[str, Any]:
            try:
                return run_job(command, {**job, **changes}, self.work)
            except RuntimeError as error:
                self.notes.append(f"{name}, {what}: {error}")
                return {}

        for length in (4096, 8192):
            rates = measure(f"throughput at {length}", seq_len=length).get("rates")
            speed = statistics.median(rates) if rates else None
            what = f"tokens per CPU second, concat, {length}"
            self.row(what, "tokens/cpu-s", mine["concat", length], speed, name, True)
        short_job = {"repeats": 0, "num_samples": num_samples}
        # Megatron's index files are kept on disk: a start without them, then a resume with them.
        fresh = {**short_job, "num_samples": num_samples + (time.time_ns() % 1000 if short == "megatron" else 0)}
        start = measure("start", **fresh)
        resume = measure("resume", **fresh, at=num_samples // 2)
        scale = NUM_SAMPLES / num_samples
        scaled = "" if scale == 1 else f", peer measured at {num_samples:.0e} and scaled"
        replays = short == "datasets"
        materialises = short == "megatron"

        def value(result: dict[str, Any], key: str, grows: bool) -> float | None:
            return result[key] * (scale if grows else 1) if key in result else None

        note = scaled if materialises else ""
        self.row(f"start{note}", "cpu-s", begun["seconds"], value(start, "seconds", materialises), name, False)
        self.row(f"memory{note}", "bytes", begun["bytes"], value(start, "bytes", materialises), name, False)
        note = scaled if replays else (f", peer measured at {num_samples:.0e}" if scale > 1 else "")
        self.row(f"cold resume{note}", "cpu-s", resumed["seconds"], value(resume, "seconds", replays), name, False)

    def report(self) -> None:
        """Print the table and the notes, and write the JSON."""
        print("CPU seconds are measured, not wall time. ratio > 1: ours is better. A dash: the peer gave no value.\n")
        print(f"{'metric':<66} {'ours':>12} {'peer':>12} {'ratio':>9}  peer")
        for row in self.rows:
            cells = ["-" if row[key] is None else f"{row[key]:.4g}" for key in ("ours", "peer", "ratio")]
            print(f"{row['metric']:<66} {cells[0]:>12} {cells[1]:>12} {cells[2]:>9}  {row['peer_name']}")
        print("Not measured: litdata and mosaicml-streaming (they install, but have no job here).")
        for note in self.notes:
            print(f"no value: {note}")
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.arguments.out, {"rows": self.rows, "notes": self.notes, "quick": self.arguments.quick})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
