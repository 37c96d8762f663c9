"""Preparing text: documents per CPU second of curation and of tokenising, and memory, beside datatrove's own blocks.

The same documents go through this project's steps (language, Gopher, C4, FineWeb and repetition measures, MinHash, PII)
and through datatrove's language-free blocks for the same steps with its own tokenizer-based filters, each in a process
of its own with one core. datatrove's filters need spaCy, its tokenizer block needs tokenizers: they run in the
environment that `peer=PYTHON` names (pip install 'datatrove[io,processing,multilingual]' into a venv); without it the
columns stay empty. Tokenising is measured against `tokenizers.encode_batch` itself.

    python benchmarks/prepare.py [CORPUS.jsonl …] tokenizer=FOLDER [peer=PYTHON] [out=FOLDER] [--quick]

`--quick` takes 1.5 MB of text instead of 30 and skips the tenfold corpus.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPORA = [ROOT / "runs" / "cache" / "corpora" / name for name in ("sotu.jsonl", "icd10cm.jsonl")]
TOKENIZER = ROOT / "runs" / "cache" / "smollm2-135m"
BYTES, QUICK_BYTES = 30_000_000, 1_500_000
GROWTH = 10
PEER = """
import json, sys, tempfile, time
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.data import Document
task, path, tokenizer = sys.argv[1:4]
texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
documents = [Document(text=text, id=str(place)) for place, text in enumerate(texts)]
with tempfile.TemporaryDirectory() as folder:
    if task == "text":
        filters = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(filter_no_terminal_punct=False),
                   FineWebQualityFilter()]
        blocks = [block.filter for block in filters]
        pii, signature = PIIFormatter(), MinhashDedupSignature(folder, config=MinhashConfig(n_grams=5))
        for block in blocks: block(documents[0])
        began = time.process_time()
        for document in documents:
            for block in blocks: block(document)  # what a filter drops goes on, so that both sides do all steps
            document.text = pii.format(document.text)
        signature.run(iter(documents), 0, 1)
    else:
        from datatrove.pipeline.tokens import DocumentTokenizer
        step = DocumentTokenizer(folder, local_working_dir=folder, tokenizer_name_or_path=tokenizer + "/tokenizer.json",
                                 shuffle_documents=False, seed=0, save_filename="a")
        began = time.process_time()
        step.run(iter(documents), 0, 1)
    print("seconds", time.process_time() - began)
"""


def lines_of(corpora: list[Path], num_bytes: int) -> Iterator[str]:
    """Lines of the corpora in turn, until their text has about `num_bytes`."""
    size = 0
    files = [path.open(encoding="utf-8") for path in corpora]
    for line in itertools.chain.from_iterable(itertools.zip_longest(*files)):
        if line is not None and size < num_bytes:
            size += len(line)
            yield line
    for file in files:
        file.close()


def own_text(raw: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of a whole curation in one process, and of its scoring stage alone."""
    from cpt_dist.config import CptConfig, DataConfig, SourceConfig
    from cpt_dist.corpus.curation.curate import curate

    config = CptConfig(data=DataConfig(shards=str(folder / "shards")))
    quality = {"perplexity": {"enabled": False}, "relevance": {"enabled": False}}
    config.data.sources = {"text": SourceConfig(raw=[str(raw)], curation={"quality": quality})}
    config.data.curation.folder, config.data.curation.tasks = str(folder / "curated"), 1
    import cpt_dist.corpus.curation.execute  # noqa: F401  so that importing datatrove isn't counted

    stages: dict[str, float] = {}
    before = time.process_time()

    def show(stage: str, done: int, units: int, rate: str) -> None:
        stages[stage] = time.process_time()

    curate(config, show)
    ends = [before, *stages.values()]
    parts = {name: end - begin for name, (begin, end) in zip(stages, itertools.pairwise(ends), strict=True)}
    return {"seconds": time.process_time() - before, **parts}


def own_tokens(raw: Path, folder: Path, tokenizer: str) -> dict[str, float]:
    """CPU seconds of prepare for an uncurated source, in one process and thread."""
    from cpt_dist.config import CptConfig, DataConfig, SourceConfig
    from cpt_dist.data.prepare import prepare

    config = CptConfig(data=DataConfig(shards=str(folder / "shards"), tokenizer=tokenizer, held_out_fraction=0.0))
    config.data.separator = "<|endoftext|>"
    config.data.sources = {"text": SourceConfig(raw=[str(raw)])}
    before = time.process_time()
    done = prepare(config)
    return {"seconds": time.process_time() - before, "tokens": float(done[0].manifest["tokens"])}


def encode_batch(raw: Path, tokenizer: str) -> dict[str, float]:
    """CPU seconds of `tokenizers.encode_batch` over the same texts."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in raw.open(encoding="utf-8")]
    encoder.encode_batch(texts[:4])
    before = time.process_time()
    tokens = 0
    for at in range(0, len(texts), 1024):
        tokens += sum(len(one) for one in encoder.encode_batch_fast(texts[at : at + 1024], add_special_tokens=False))
    return {"seconds": time.process_time() - before, "tokens": float(tokens)}


def measure(what: str, raw: Path, tokenizer: str) -> None:
    """Run one measurement and print it with the peak of memory, as a line of JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if what == "own_text":
            result = own_text(raw, folder)
        elif what == "own_tokens":
            result = own_tokens(raw, folder, tokenizer)
        else:
            result = encode_batch(raw, tokenizer)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    print(json.dumps(result))


def run(command: list[str]) -> str:
    """Output of a process with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def row(name: str, documents: int, num_bytes: int, result: dict[str, float] | None) -> dict[str, Any]:
    """A row of the table: rates of a measurement."""
    if result is None:
        return {"what": name}
    seconds = result["seconds"]
    return {
        "what": name,
        "documents_per_cpu_second": documents / seconds,
        "megabytes_per_cpu_second": num_bytes / seconds / 1e6,
        **result,
    }


def peer_row(python: str | None, task: str, raw: Path, tokenizer: str) -> dict[str, float] | None:
    """datatrove's own blocks in their own environment; None without one."""
    if python is None:
        return None
    return {"seconds": float(run([python, "-c", PEER, task, str(raw), tokenizer]).split()[-1])}


def main() -> None:
    """Measure everything, print the table, write it as JSON where `out` says."""
    words = sys.argv[1:]
    if words and words[0] == "measure":
        measure(words[1], Path(words[2]), words[3])
        return
    options = dict(word.split("=", 1) for word in words if "=" in word)
    quick = "--quick" in words
    corpora = [Path(word) for word in words if "=" not in word and not word.startswith("--")] or CORPORA
    tokenizer, peer = options.get("tokenizer", str(TOKENIZER)), options.get("peer")
    own = [sys.executable, str(Path(__file__).resolve()), "measure"]
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw.jsonl"
        lines = list(lines_of(corpora, QUICK_BYTES if quick else BYTES))
        raw.write_text("".join(lines), encoding="utf-8")
        documents, num_bytes = len(lines), raw.stat().st_size
        print(f"{documents:,} documents, {num_bytes / 1e6:.1f} MB from {', '.join(path.name for path in corpora)}")
        made = {
            what: json.loads(run([*own, what, str(raw), tokenizer])) for what in ("own_text", "own_tokens", "encode")
        }
        text = [
            row("curation: all stages", documents, num_bytes, made["own_text"]),
            row("curation: score stage", documents, num_bytes, {"seconds": made["own_text"]["score"]}),
            row("datatrove's blocks", documents, num_bytes, peer_row(peer, "text", raw, tokenizer)),
        ]
        tokens = [
            row("prepare", documents, num_bytes, made["own_tokens"]),
            row("tokenizers.encode_batch", documents, num_bytes, made["encode"]),
            row("datatrove's DocumentTokenizer", documents, num_bytes, peer_row(peer, "tokens", raw, tokenizer)),
        ]
        memory = {"1x": made["own_text"]["peak_bytes"]}
        if not quick:
            grown = Path(name) / "grown.jsonl"
            with grown.open("w", encoding="utf-8") as file:
                for copy in range(GROWTH):
                    for line in lines:  # other words in each copy, or all but one would be duplicates
                        record = json.loads(line)
                        record["text"] = record["text"].replace("e", "e" if not copy else chr(0x100 + copy))
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
            memory["10x"] = json.loads(run([*own, "own_text", str(grown), tokenizer]))["peak_bytes"]
    print(f"{'':<32}{'documents/CPU s':>18}{'MB/CPU s':>12}")
    for one in [*text, *tokens]:
        if "documents_per_cpu_second" in one:
            print(f"{one['what']:<32}{one['documents_per_cpu_second']:>18,.0f}{one['megabytes_per_cpu_second']:>12.2f}")
        else:
            print(f"{one['what']:<32}{'not measured: peer=PYTHON':>30}")
    print("peak memory of a curation: " + ", ".join(f"{size} {peak / 1e6:,.0f} MB" for size, peak in memory.items()))
    if "out" in options:
        path = Path(options["out"]) / "prepare.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"documents": documents, "bytes": num_bytes, "text": text, "tokens": tokens, "memory": memory}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
