"""In-memory sources for the tests of order, packing, batches and loader: same methods as a real one, no files."""

from __future__ import annotations

import numpy as np

from cpt_dist.data.order import SampleOrder
from cpt_dist.data.stage_plan import SourceRows, StagePlan


class MemorySource:
    """A source whose token values tell where they are from: token = 100 * document + place in it (mod 60000)."""

    def __init__(
        self, name: str, shards: list[list[int]], first_document: int = 0, selected: list[list[int]] | None = None
    ) -> None:
        """`shards`: lengths of the documents of each shard, in tokens; `selected`: those that belong to the source."""
        self.name, self.role, self.fingerprint = name, "domain", f"fingerprint of {name}"
        self.plan_folder = None
        self._selected = selected
        self.targets: list[list[tuple[int, int]]] | None = None
        """Of each shard the spans of tokens that are to be predicted."""
        self.places: list[tuple[list[int], list[int]]] | None = None
        """Of each shard the recorded ends of paragraphs and of lines."""
        self.shard_tokens = np.array([sum(lengths) for lengths in shards], dtype=np.int64)
        self._offsets, self._tokens, self._ids = [], [], []
        document = first_document
        for lengths in shards:
            self._offsets.append(np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64))
            numbers = np.arange(document, document + len(lengths))
            tokens = [(100 * n + np.arange(length)) % 60000 for n, length in zip(numbers, lengths, strict=True)]
            self._tokens.append(np.concatenate([*tokens, np.empty(0)]).astype(np.uint16))
            self._ids.append(np.stack([np.full(16, n % 256, dtype=np.uint8) for n in numbers]))
            document += len(lengths)

    def tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.shard_tokens[shard]
        return self._tokens[shard][start:stop]

    def doc_offsets(self, shard: int) -> np.ndarray:
        return self._offsets[shard]

    def doc_ids(self, shard: int) -> np.ndarray:
        return self._ids[shard]

    def loss_spans(self, shard: int) -> np.ndarray | None:
        return None if self.targets is None else np.array(self.targets[shard], dtype=np.uint64).reshape(-1, 2)

    def cuts(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        paragraphs, lines = ([], []) if self.places is None else self.places[shard]
        return np.array(paragraphs, dtype=np.int64), np.array(lines, dtype=np.int64)

    def documents(self, shard: int) -> np.ndarray | None:
        return None if self._selected is None else np.array(self._selected[shard], dtype=np.int64)


def source_rows(name: str, num_rows: int, seq_len: int = 8, mean_tokens: float | None = None) -> SourceRows:
    return SourceRows(name, f"fingerprint of {name}", {seq_len: (num_rows, int(num_rows * (mean_tokens or seq_len)))})


def stage(num_samples: int, mixture: dict, *, name: str = "main", seq_len: int = 8, batch: int = 4) -> StagePlan:
    return StagePlan(name, num_samples, seq_len, batch, mixture)


def order_of(stages: list[StagePlan], rows: dict[str, int], seed: int = 0, ledger=()) -> SampleOrder:
    lengths = {plan.seq_len for plan in stages}
    sources = [SourceRows(name, f"fingerprint of {name}", {n: (r, r * n) for n in lengths}) for name, r in rows.items()]
    return SampleOrder(stages, sources, seed, ledger)
