"""What curation did, as one record of numbers and samples: steps, drops, scores, duplicates, overlap, tokens, epochs.

Counts are those of the manifests. Tokens are counted by the model's own tokenizer, over all texts of a step or, where
these are more than `prepare.report_bytes`, over so many of them; nothing is guessed from words. Nothing is drawn or
written here.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.corpus.curation.curate import DUPLICATES, CuratedFolder
from cpt_dist.corpus.curation.decontaminate import CONTAMINATED
from cpt_dist.corpus.curation.decontaminate import STEP as CUT_STEP
from cpt_dist.corpus.curation.score import EXACT_STEP
from cpt_dist.corpus.curation.tables import SCORE
from cpt_dist.data.shards import MANIFEST, read_manifest
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError
from cpt_dist.planning.curation_texts import EXCERPT, KEPT_CHARACTERS, KeptTexts, excerpts, keeper_of
from cpt_dist.planning.data_plan import plan_data

FORMAT = "cpt_dist.curation/1"
SAMPLES = 5
BINS = 40
PERCENTILES = (1, 10, 50, 90, 99)
LARGEST_CLUSTERS, MOST_ITEMS = 10, 50
_BATCH_BYTES = 4 << 20
_MOST_VALUES = 1 << 20
"""Documents of a source whose scores are drawn; of more, every k-th."""


def summarise(config: CptConfig, folders: dict[str, CuratedFolder]) -> dict[str, Any]:
    """The record of a curation; `folders` are those of `curate`. Raises UserError where a file is damaged."""
    tokenizer = DocumentTokenizer(config.data.tokenizer, config.data.separator)
    budget = parse_quantity(config.prepare.report_bytes, "prepare.report_bytes")
    duplicates = Path(config.data.curation.folder) / DUPLICATES
    near = json.loads(duplicates.read_text(encoding="utf-8")) if duplicates.is_file() else None
    largest = near["largest"][:LARGEST_CLUSTERS] if near else []
    gone = {name: _Dropped(folder, tokenizer, budget) for name, folder in folders.items()}
    shown = [sample for one in gone.values() for sample in one.samples()]
    wanted = {identity for sample in shown if (identity := keeper_of(sample))}
    kept = KeptTexts({*wanted, *(cluster["best"] for cluster in largest)})
    left = {name: _left(folder, tokenizer, budget, kept) for name, folder in folders.items()}
    sources = {name: _source(folder, gone[name], left[name], kept) for name, folder in folders.items()}
    return {
        "format": FORMAT,
        "tokenizer": str(config.data.tokenizer),
        "sources": sources,
        "clusters": {
            **{key: near[key] for key in ("clusters", "duplicates", "sizes")},
            "largest": [_cluster(one, kept) for one in largest],
        }
        if near
        else None,
        "overlap": _overlap(sources, near["between"] if near else {}),
        "contamination": _contamination(folders),
        "prepared": {name: _prepared(Path(config.data.shards) / name) for name in folders},
        "epochs": _epochs(config),
    }


def _cluster(cluster: dict[str, Any], kept: KeptTexts) -> dict[str, Any]:
    """A cluster of near-duplicates, and how the best of its documents begins, if that is still there."""
    source, text = kept.of(cluster["best"]) or (None, None)
    text = text[:EXCERPT] if text is not None else None
    return {"documents": cluster["documents"], "kept": cluster["kept"], "source": source, "text": text}


def _left(folder: CuratedFolder, tokenizer: DocumentTokenizer, budget: int, kept: KeptTexts) -> TokenCount:
    """The tokens of what is left of a source."""
    left = TokenCount(tokenizer, budget)
    for text in kept.texts(folder):
        left.add(text)
    left.finish()
    return left


def _source(folder: CuratedFolder, dropped: _Dropped, left: TokenCount, kept: KeptTexts) -> dict[str, Any]:
    manifest = folder.manifest
    dropped.finish(left)
    steps = []
    tokens = left.tokens
    for name, counts in reversed(manifest["steps"].items()):
        gone = sum(counts["dropped"].values())
        lost = dropped.tokens_of(name)
        steps.append({"step": name, **counts, "gone": gone, "tokens_dropped": lost, "tokens_left": tokens})
        tokens += lost
    return {
        "role": manifest["settings"]["role"],
        "documents": manifest["documents"],
        "tokens": left.tokens,
        "tokens_counted": left.is_whole and dropped.is_whole,
        "tokens_read": tokens,
        "steps": steps[::-1],
        "labels": manifest["labels"],
        "labels_before": manifest["labels_before"],
        "notes": manifest["notes"],
        "repaired_utf8": manifest["repaired_utf8"],
        "reasons": dropped.reasons(kept),
        "removed": dropped.removed,
        "scores": _scores(folder, dropped),
        "exact_duplicates_of": dict(sorted(dropped.exact_of.items())),
    }


class TokenCount:
    """Tokens of texts, all of them up to a budget of bytes, beyond it in proportion to bytes."""

    def __init__(self, tokenizer: DocumentTokenizer, budget: int) -> None:
        self._tokenizer, self._budget = tokenizer, budget
        self._waiting: list[str] = []
        self._waiting_bytes = self._counted_bytes = self._counted = self.num_bytes = 0

    def add(self, text: str) -> None:
        """Take in a text."""
        size = len(text.encode())
        self.num_bytes += size
        if self._counted_bytes + self._waiting_bytes >= self._budget:
            return
        self._waiting.append(text)
        self._waiting_bytes += size
        if self._waiting_bytes >= _BATCH_BYTES:
            self.finish()

    def finish(self) -> None:
        """Count what is waiting."""
        self._counted += sum(map(len, self._tokenizer.encode_batch(self._waiting))) if self._waiting else 0
        self._counted_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0

    @property
    def is_whole(self) -> bool:
        """Whether every text was counted."""
        return self._counted_bytes == self.num_bytes

    @property
    def tokens(self) -> int:
        """Tokens of all texts, separators included."""
        return self.scaled(self.num_bytes)

    def scaled(self, num_bytes: int) -> int:
        """Tokens of so many bytes of such text; 0 where none was counted."""
        return round(self._counted * num_bytes / self._counted_bytes) if self._counted_bytes else 0


def _rows(folder: CuratedFolder, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of the files that a manifest lists as `kind`."""
    for entry in folder.manifest[kind]:
        with parquet.ParquetFile(folder.folder / entry["file"]) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()


class _Dropped:
    """What was dropped of a source: tokens by step, samples by reason, scores, and of what duplicates are."""

    def __init__(self, folder: CuratedFolder, tokenizer: DocumentTokenizer, budget: int) -> None:
        self._tokens: dict[str, TokenCount] = {}
        self._bytes_without_text: Counter[str] = Counter()
        self._samples: dict[tuple[str, str], list[tuple[int, int, dict[str, Any]]]] = {}
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._left: TokenCount | None = None
        self.exact_of: Counter[str] = Counter()
        self.scores: list[tuple[str, dict[str, float]]] = []
        self.removed: dict[str, Any] = {"spans": 0, "bytes": 0, "samples": []}
        """Parts that were cut out of documents."""
        for row in _rows(folder, "dropped"):
            self._add(row, tokenizer, budget)
        for row in _rows(folder, "removed"):
            self._tokens.setdefault(CUT_STEP, TokenCount(tokenizer, budget)).add(row["text"])
            self.removed["spans"] += 1
            self.removed["bytes"] += row["bytes"]
            if len(self.removed["samples"]) < SAMPLES:
                self.removed["samples"].append({**_shown(row), "text": row["text"][:EXCERPT]})
        for count in self._tokens.values():
            count.finish()

    def _add(self, row: dict[str, Any], tokenizer: DocumentTokenizer, budget: int) -> None:
        step, reason = row["step"], row["reason"]
        self._numbers[step, reason] += 1
        if row["text"] is None:
            self._bytes_without_text[step] += row["bytes"]
        else:
            self._tokens.setdefault(step, TokenCount(tokenizer, budget)).add(row["text"])
        if step == EXACT_STEP:
            self.exact_of[row["detail"].split("'")[1]] += 1
        if row["scores"] and len(self.scores) < _MOST_VALUES:
            self.scores.append((reason, json.loads(row["scores"])))
        # The samples are those with the smallest ids: hashes, so any documents, and the same ones each time.
        shown = {**_shown(row), "text": row["text"] if row["text"] is None else row["text"][:KEPT_CHARACTERS]}
        heap = self._samples.setdefault((step, reason), [])
        entry = (-int(row["id"] or f"{row['record']:032x}", 16), self._numbers[step, reason], shown)
        if len(heap) < SAMPLES:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def finish(self, left: TokenCount) -> None:
        """Take the tokens per byte of what is `left` for dropped records whose text isn't kept."""
        self._left = left

    @property
    def is_whole(self) -> bool:
        """Whether tokens were counted over every text there is."""
        return all(count.is_whole for count in self._tokens.values()) and not any(self._bytes_without_text.values())

    def tokens_of(self, step: str) -> int:
        """Tokens of what `step` dropped."""
        own = self._tokens[step].tokens if step in self._tokens else 0
        return own + (self._left.scaled(self._bytes_without_text[step]) if self._left else 0)

    def samples(self) -> list[dict[str, Any]]:
        """What is shown of each reason; of duplicates with the text of what stays."""
        return [entry[-1] for heap in self._samples.values() for entry in heap]

    def reasons(self, kept: KeptTexts) -> list[dict[str, Any]]:
        """Each reason with its number of documents and a few of them, by step."""
        return [
            {
                "step": step,
                "reason": reason,
                "documents": number,
                "samples": [
                    _with_keeper(entry[-1], kept)
                    for entry in sorted(self._samples[step, reason], key=lambda one: -one[0])
                ],
            }
            for (step, reason), number in sorted(self._numbers.items())
        ]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "file", "record", "detail", "bytes")}


def _with_keeper(sample: dict[str, Any], kept: KeptTexts) -> dict[str, Any]:
    """A sample as it's shown: of a duplicate where it differs from what stays, of anything else how it begins."""
    keeper = keeper_of(sample)
    source, text = kept.of(keeper) or (None, None)
    if text is None:
        stays = None if keeper is None else {"source": None, "text": None}
        return {**sample, "text": (sample["text"] or "").strip("\n")[:EXCERPT], "stays": stays}
    if sample["text"] is None:  # an exact duplicate
        return {**sample, "text": text.strip("\n")[:EXCERPT], "stays": {"source": source, "text": None}}
    gone, text = excerpts(sample["text"], text)
    return {**sample, "text": gone, "stays": {"source": source, "text": text}}


def _scores(folder: CuratedFolder, dropped: _Dropped) -> dict[str, Any]:
    """Score -> histogram of the documents that stay and of those dropped after scoring, and the thresholds."""
    manifest = folder.manifest
    thresholds = manifest["settings"]["steps"]["quality"]["thresholds"]
    stride = -(-manifest["documents"] // _MOST_VALUES) or 1
    result = {}
    for name in manifest["columns"]["scores"]:
        kept = []
        for entry in manifest["parts"]:
            with parquet.ParquetFile(folder.folder / entry["file"]) as file:
                if SCORE + name in file.schema_arrow.names:
                    kept.append(file.read([SCORE + name]).column(0).to_numpy()[::stride])
        values = np.concatenate(kept) if kept else np.empty(0)
        values = values[np.isfinite(values)]
        gone = np.array([scores[name] for _, scores in dropped.scores if name in scores])
        gone = gone[np.isfinite(gone)]
        every = np.concatenate([values, gone])
        if not len(every):
            continue
        low, high = np.quantile(every, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        result[name] = {
            "edges": [float(edge) for edge in edges],
            "kept": np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist(),
            "dropped": np.histogram(gone.clip(edges[0], edges[-1]), edges)[0].tolist(),
            "mean": float(values.mean()) if len(values) else None,
            "percentiles": [float(value) for value in np.percentile(every, PERCENTILES)],
            "thresholds": list(thresholds.get(name, [])),
        }
    return result


def _overlap(sources: dict[str, Any], near: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """For each pair: documents of one source that are left out because the other has them, exactly or nearly."""
    pairs: dict[tuple[str, str], dict[str, int]] = {}
    for name, source in sources.items():
        for other, number in source["exact_duplicates_of"].items():
            pairs.setdefault((name, other), {"exact": 0, "near": 0})["exact"] = number
        for other, number in near.get(name, {}).items():
            pairs.setdefault((name, other), {"exact": 0, "near": 0})["near"] = number
    return [{"source": name, "of": other, **numbers} for (name, other), numbers in sorted(pairs.items())]


def _contamination(folders: dict[str, CuratedFolder]) -> dict[str, Any]:
    """Documents dropped for each evaluation item, those with the most first."""
    items: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for name, folder in folders.items():
        for kind in ("dropped", "removed"):
            for row in _rows(folder, kind):
                if row.get("reason", CONTAMINATED) == CONTAMINATED:
                    items[row["detail"].split(": ", 1)[0]] += 1
                    documents[name] += 1
    most = items.most_common(MOST_ITEMS)
    return {"documents": dict(sorted(documents.items())), "items": len(items), "most": [list(one) for one in most]}


def _prepared(folder: Path) -> dict[str, Any] | None:
    """What prepare made of a source: exact tokens, and what it dropped or held out; None before that."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    return {"tokens": manifest["tokens"], "documents": manifest["documents"], **manifest["counts"]}


def _epochs(config: CptConfig) -> dict[str, Any]:
    """How often the planned mixture reads each source; or why that isn't known."""
    if not config.stages:
        return {"unknown": "no stage is configured (stage=…)"}
    try:
        plan = plan_data(config)
    except UserError as error:
        return {"unknown": error.problems[0]}
    return {
        "sources": {
            name: {"tokens": source["tokens"], "tokens_read": source["tokens_read"], "epochs": source["epochs"]}
            for name, source in plan["sources"].items()
        }
    }
