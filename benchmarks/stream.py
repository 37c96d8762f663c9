"""Speed of the data plane beside its peers: one job, one core each, the same real tokens.

    python benchmarks/stream.py [--quick] [--ours-only] [--cache FOLDER] [--peer NAME ...]

A weighted mixture of four sources, packed to 4096 and 8192, given as micro-batches of 8 rows of int64 input_ids with
document lengths. Measured: tokens per CPU second; CPU seconds to the first rows of a run, at its beginning and in its
middle, with imports done; resident memory that this added. Medians of 5 (--quick: 3) in one process of one thread for
each, in CPU seconds, so that other work on the machine disturbs little. A peer that materialises or replays is measured
at the size that the row names, ours always at 1e9 samples. Environments of the peers, their data and indices are kept
in --cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peer_jobs import resident_bytes  # noqa: E402
from benchmarks.peers import PEERS, peer_python, short_name  # noqa: E402
from benchmarks.stream_data import make_sources  # noqa: E402
from benchmarks.stream_peers import MICRO_BATCH  # noqa: E402
from benchmarks.stream_peers import PEERS as JOBS  # noqa: E402
from cpt_dist.config import BEST_FIT, CONCAT, StageConfig  # noqa: E402
from cpt_dist.data.loader import StepLoader  # noqa: E402
from cpt_dist.data.order import SampleOrder  # noqa: E402
from cpt_dist.data.shards import Source  # noqa: E402
from cpt_dist.files import write_json  # noqa: E402

DATA_PEERS = [name for name in PEERS if short_name(name) in JOBS]
WEIGHTS = [0.4, 0.3, 0.2, 0.1]
NUM_SAMPLES = 10**9
BATCH_ROWS = 64
LENGTHS = (4096, 8192)
PEER_SAMPLES = {"grain": 10**9, "megatron": 10**7, "mosaicml": 10**7, "datasets": 40_000, "litdata": 40_000}
"""Samples of the run at whose beginning and middle a peer is measured."""
RESUME_ROW = {"litdata": 64}
"""litdata's run ends with its data, so that 40,000 samples need rows of 64 tokens."""
MATERIALISES = ("megatron", "mosaicml")
_WALL_SECONDS = 8
"""Seconds by the clock for each CPU second that a job may take."""
ASKED = {"world_size": "changed world size", "schedule": "weights as tables over progress", "packing": "packing"}


def ramp(weights: list[float]) -> dict[str, Any]:
    """A schedule of weights as this project takes it."""
    return {f"source{number}": [[0.0, weight], [1.0, 1.0]] for number, weight in enumerate(weights)}


def own_order(
    sources: list[Source], seq_len: int, mixture: dict[str, Any] | None = None, packing: str = CONCAT
) -> SampleOrder:
    """The order of a run of 1e9 samples."""
    mixture = mixture or {source.name: weight for source, weight in zip(sources, WEIGHTS, strict=True)}
    tokens, batch = str(NUM_SAMPLES * seq_len), str(BATCH_ROWS * seq_len)
    stage = StageConfig(tokens=tokens, seq_len=seq_len, batch_tokens=batch, mixture=mixture, packing=packing)
    return SampleOrder.from_sources([stage], sources, seed=1)


def own_steps(job: dict[str, Any]) -> Any:
    """Steps of micro-batches from sample `at` on, from nothing but the files."""
    sources = [Source.open(Path(source["shards"])) for source in job["sources"]]
    order = own_order(sources, job["seq_len"], packing=job.get("packing", CONCAT))
    first = job["at"] // BATCH_ROWS * BATCH_ROWS
    return iter(StepLoader(order, sources, stage=0, micro_batch=MICRO_BATCH, first_sample=first))


def own_rates(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per CPU second, with document lengths and ids; labels and positions are made where they are used."""
    steps, rates = own_steps(job), []
    for _ in range(job["repeats"] + 1):
        tokens, begin = 0, time.process_time()
        while time.process_time() - begin < job["seconds"]:
            tokens += sum(batch.num_tokens for batch in next(steps))
        rates.append(tokens / (time.process_time() - begin))
    return {"rates": rates[1:]}


def own_first(job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds from nothing to the first step of 64 rows, and resident bytes that the first time added."""
    seconds, added = [], 0
    for number in range(job["repeats"]):
        before, begin = resident_bytes(), time.process_time()
        steps = own_steps(job)
        next(steps)
        seconds.append(time.process_time() - begin)
        added = resident_bytes() - before if number == 0 else added
    return {"seconds": seconds, "bytes": added}


def own_attempts(job: dict[str, Any]) -> dict[str, str]:
    """The same questions as to the peers."""
    sources = [Source.open(Path(source["shards"])) for source in job["sources"]]
    order = own_order(sources, 4096, ramp(WEIGHTS))
    seen = []
    for ranks in (2, 3):
        loaders = [StepLoader(order, sources, stage=0, rank=rank, world_size=ranks) for rank in range(ranks)]
        steps = [next(iter(loader)) for loader in loaders]
        seen.append(sorted(n for step in steps for batch in step for n in batch.sample_ids.tolist()))
    begin, end = (next(iter(order.shares(n).values())) for n in (0, order.num_samples - 1))
    return {
        "world_size": "same global batch on 2 and 3 ranks" if seen[0] == seen[1] else "differs",
        "schedule": f"accepted: {begin:.2f} of source0 at the beginning, {end:.2f} at the end",
        "packing": "documents laid end to end within a shard, bounds as recorded",
    }


def bare_gather(job: dict[str, Any]) -> dict[str, Any]:
    """Rows at random places of the four mapped files, copied into a new int64 array for each 8, and nothing else.

    With `job["held"]` the arrays of a step of 64 rows are kept until it is whole, as a loader's are, so the allocator
    gives fresh memory; else each array is freed for the next, whose memory is then still in the processor's cache.
    """
    files = [np.asarray(np.load(source["tokens"], mmap_mode="r")) for source in job["sources"]]
    length, rates = job["seq_len"], []
    generator = np.random.default_rng(0)
    chosen = generator.choice(4, size=64 * BATCH_ROWS, p=WEIGHTS)
    rows = [(int(number), int(generator.integers(0, len(files[number]) - length))) for number in chosen]
    for _ in range(job["repeats"] + 1):
        tokens, begin = 0, time.process_time()
        while time.process_time() - begin < job["seconds"]:
            step: list[np.ndarray] = []
            at = tokens // length % len(rows)
            for first in range(at, at + BATCH_ROWS, MICRO_BATCH):
                batch = np.empty((MICRO_BATCH, length), dtype=np.int64)
                for place, (number, start) in enumerate(rows[first : first + MICRO_BATCH]):
                    batch[place] = files[number][start : start + length]
                tokens += batch.size
                if job["held"]:
                    step.append(batch)
        rates.append(tokens / (time.process_time() - begin))
    return {"rates": rates[1:]}


OWN = {"rates": own_rates, "first": own_first, "attempts": own_attempts, "bare": bare_gather}


def run_job(command: list[str], job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run a job in a process of its own with one thread; RuntimeError with its last words where it fails.

    `job["timeout"]` is in CPU seconds, so that a busy machine stops nobody; what sleeps is stopped after 8 times that.
    """
    path = work / f"job-{os.getpid()}.json"
    path.write_text(json.dumps(job))
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "TMPDIR": str(work)}
    limit = job["timeout"]
    try:
        result = subprocess.run(
            ["prlimit", f"--cpu={limit}", *command, str(path)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=work,
            timeout=_WALL_SECONDS * limit,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {_WALL_SECONDS * limit} s") from error
    if result.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise RuntimeError(f"not done after {limit} CPU seconds")
    if result.returncode or not result.stdout.strip():
        raise RuntimeError((result.stderr.strip().splitlines() or ["no output"])[-1][:200])
    return json.loads(result.stdout.strip().splitlines()[-1])


class Benchmark:
    """All measurements and the rows that they give."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments, self.work = arguments, work
        sources = make_sources(work)
        manifest = json.loads((Path(sources[0]["shards"]) / "manifest.json").read_text())
        self.common = {
            "sources": sources,
            "weights": WEIGHTS,
            "separator": manifest["tokenizer"]["separator_id"],
            "repeats": 3 if arguments.quick else 5,
            "seconds": 0.4 if arguments.quick else 1.0,
            "timeout": 30 if arguments.quick else 300,
            "work": str(work),
            "seq_len": 4096,
            "at": 0,
        }
        self.rows: list[dict[str, Any]] = []
        self.asked: dict[str, dict[str, str]] = {}

    def own(self, what: str, **changes: Any) -> dict[str, Any]:
        """This project's side, or the bare gather."""
        job = {**self.common, **changes, "what": what}
        return run_job([sys.executable, str(Path(__file__).resolve()), "--job"], job, self.work)

    def row(self, metric: str, unit: str, ours: float | None, peer: float | None, name: str, higher: bool) -> None:
        """Add a row; ratio > 1 means that ours is better, None that the peer has no value."""
        ratio = None if not peer or not ours else (ours / peer if higher else peer / ours)
        values = {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio}
        self.rows.append(values)

    def run(self) -> None:
        """Measure ours, then each peer."""
        speeds = {length: statistics.median(self.own("rates", seq_len=length)["rates"]) for length in LENGTHS}
        for length in LENGTHS:
            packed = statistics.median(self.own("rates", seq_len=length, packing=BEST_FIT)["rates"])
            for held, name in ((False, "bare gather, one array"), (True, "bare gather, step held")):
                bare = statistics.median(self.own("bare", seq_len=length, held=held)["rates"])
                self.row(f"throughput, rows of {length}", "tokens/CPU-s", speeds[length], bare, name, True)
                self.row(f"throughput, rows of {length}, best_fit", "tokens/CPU-s", packed, bare, name, True)
        begun, resumed = self.own("first"), self.own("first", at=NUM_SAMPLES // 2)
        self.asked["cpt_dist"] = self.own("attempts")
        if self.arguments.ours_only:
            for metric, result in (("start-up", begun), ("cold resume to the middle", resumed)):
                self.row(f"{metric} of 1e9 samples", "CPU-s", statistics.median(result["seconds"]), None, "", False)
            self.row("resident memory of a start on 1e9 samples", "bytes", begun["bytes"], None, "", False)
        else:
            for name in self.arguments.peer or DATA_PEERS:
                self.peer(name, speeds, begun, resumed)
                self.write()  # what is measured isn't lost where a later peer is stopped

    def peer(self, name: str, speeds: dict[int, float], begun: dict[str, Any], resumed: dict[str, Any]) -> None:
        """Every row of one peer; a part that fails has no value and says why."""
        short = short_name(name)
        num_samples = PEER_SAMPLES[short]
        if self.arguments.quick and short in MATERIALISES:
            num_samples = 10**6
        try:
            python = peer_python(name, self.arguments.cache)
        except RuntimeError as error:
            self.asked[name] = dict.fromkeys(ASKED, f"not installed: {error}")
            return
        self.asked[name] = {}
        job = {**self.common, "peer": short, "num_samples": num_samples}

        def measured(what: str, label: str, **changes: Any) -> dict[str, Any]:
            command = [str(python), str(ROOT / "benchmarks" / "peer_jobs.py")]
            try:
                return run_job(command, {**job, "what": what, **changes}, self.work)
            except RuntimeError as error:
                self.asked[name][label] = f"failed: {error}"
                return {}

        def median(result: dict[str, Any], key: str) -> float | None:
            return statistics.median(result[key]) if key in result else None

        for length in LENGTHS:
            samples = min(num_samples, 10**6)
            rates = measured("rates", f"throughput at {length}", seq_len=length, num_samples=samples)
            self.row(
                f"throughput, rows of {length}", "tokens/CPU-s", speeds[length], median(rates, "rates"), name, True
            )
        row = RESUME_ROW.get(short, 4096)
        rows = "" if row == 4096 else f" of {row} tokens"
        size = "1e9" if num_samples == NUM_SAMPLES else f"1e9 samples, the peer's of {num_samples:.0e}{rows}"
        size = f"{size} samples" if num_samples == NUM_SAMPLES else size
        start = measured("first", "start-up", seq_len=row)
        resume = measured("first", "cold resume", seq_len=row, at=num_samples // 2)
        ours, again = (statistics.median(result["seconds"]) for result in (begun, resumed))
        self.row(f"start-up of {size}", "CPU-s", ours, median(start, "seconds"), name, False)
        self.row(f"resident memory of a start on {size}", "bytes", begun["bytes"], start.get("bytes"), name, False)
        self.row(f"cold resume to the middle of {size}", "CPU-s", again, median(resume, "seconds"), name, False)
        self.asked[name] |= measured("attempts", "attempts")

    def report(self) -> None:
        """Print the tables and write the JSON."""
        print(
            f"CPU seconds, medians of {self.common['repeats']}. ratio > 1: ours is better; - : no value, see below.\n"
        )
        print(f"{'metric':<72} {'unit':<12} {'ours':>10} {'peer':>10} {'ratio':>8}  peer")
        for row in self.rows:
            cells = ["-" if row[key] is None else f"{row[key]:.4g}" for key in ("ours", "peer", "ratio")]
            numbers = f"{cells[0]:>10} {cells[1]:>10} {cells[2]:>8}"
            print(f"{row['metric']:<72} {row['unit']:<12} {numbers}  {row['peer_name']}")
        print("\nWhat else the job asks for, tried in the same run:")
        for name, answers in self.asked.items():
            for what, answer in answers.items():
                print(f"{name:<26} {ASKED.get(what, what):<32} {answer}")
        self.write()

    def write(self) -> None:
        """Write the rows so far as JSON."""
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.arguments.out, {"quick": self.arguments.quick, "rows": self.rows, "asked": self.asked})


def main() -> None:
    """Run everything, print the tables and write benchmarks/results/stream.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="0.4 CPU seconds a measurement, medians of 3, shorter runs of peers, each job at most 30 CPU seconds",
    )
    parser.add_argument("--ours-only", action="store_true", help="without peers")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache" / "peers")
    parser.add_argument("--peer", action="append", choices=DATA_PEERS, help="only this peer (repeatable)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "stream.json")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job.read_text())
        print(json.dumps(OWN[job["what"]](job)))
        return
    arguments.cache = arguments.cache.resolve()
    work = arguments.cache / "stream-work"
    work.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(arguments, work)
    benchmark.run()
    benchmark.report()


if __name__ == "__main__":
    main()
