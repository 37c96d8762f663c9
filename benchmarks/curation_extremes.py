"""Curation of raw files of extreme kinds: how long it takes, and how much memory, each in a process of its own.

    python benchmarks/curation_extremes.py [tiny=1000000] [huge_megabytes=100] [out=FOLDER]

`tiny` documents of a few words, once the tenth of them, and one document of so many megabytes. Time is that of the
processor. Scores are left out for the tiny ones, since a document of a few words has hardly any.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cpt_dist.config import CptConfig, DataConfig, SourceConfig
from cpt_dist.corpus.curation.curate import curate

WORDS = [f"{a}{b}" for a in ("ba", "ko", "mi", "tu", "re", "lo") for b in ("n", "rt", "sk", "m", "pel", "gan")]


def tiny(number: int) -> Iterator[str]:
    """So many documents of seven words."""
    yield from (f"tiny document {place} of {number} in all" for place in range(number))


def huge(megabytes: int) -> Iterator[str]:
    """One document of paragraphs of random words."""
    choose = random.Random(7)
    paragraphs, size = [], 0
    while size < megabytes * 1_000_000:
        paragraphs.append(" ".join(choose.choices(WORDS, k=60)))
        size += len(paragraphs[-1]) + 2
    yield "\n\n".join(paragraphs)


def measure(kind: str, number: int) -> None:
    """Curate one corpus in this process and print what it took as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        with open(raw, "w", encoding="utf-8") as handle:
            for text in {"tiny": tiny, "huge": huge}[kind](number):
                handle.write(json.dumps({"text": text}) + "\n")
        settings = {"quality": {"enabled": False}} if kind == "tiny" else {}
        source = SourceConfig(raw=[str(raw)], curation=settings)
        config = CptConfig(data=DataConfig(sources={"text": source}, shards=str(folder / "shards"), tokenizer=""))
        config.data.curation.folder, config.data.curation.tasks = str(folder / "curated"), 1
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        done = curate(config)["text"].manifest
        record = {
            "kind": kind,
            "number": number,
            "raw_megabytes": raw.stat().st_size / 1e6,
            "documents": done["documents"],
            "cpu_seconds": time.process_time() - begin,
            "megabytes_before": before / 1024,
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    print(json.dumps(record))


def main() -> None:
    """Measure each corpus and print the table."""
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    if "only" in options:
        measure(options["only"], int(options["number"]))
        return
    number = int(options.get("tiny", 1_000_000))
    cases = [("tiny", number // 10), ("tiny", number), ("huge", int(options.get("huge_megabytes", 100)))]
    print(f"{'':>16} {'raw MB':>8} {'documents':>10} {'CPU s':>7} {'MB before':>10} {'MB at most':>11}")
    records = []
    for kind, size in cases:
        command = [sys.executable, __file__, f"only={kind}", f"number={size}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        one = json.loads(done.stdout.splitlines()[-1])
        records.append(one)
        print(
            f"{kind:>5} {size:>10,} {one['raw_megabytes']:>8.1f} {one['documents']:>10,} {one['cpu_seconds']:>7.0f} "
            f"{one['megabytes_before']:>10.0f} {one['peak_megabytes']:>11.0f}",
            flush=True,
        )
    if "out" in options:
        path = Path(options["out"]) / "curation_extremes.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
