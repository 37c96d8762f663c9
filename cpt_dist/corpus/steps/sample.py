"""The sample of a source that models are fitted on: the same whatever the order and the number of tasks.

It is the documents with the smallest ids, which are hashes of their text, so they are spread evenly over the source and
don't depend on where files begin. Long documents give their beginning only, so none of them is the whole sample.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

MAX_DOCUMENT_CHARACTERS = 1 << 15


class Sample:
    """Keeps the texts with the smallest ids, as many as fit into a number of characters."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._size = 0
        self._heap: list[tuple[int, str]] = []

    def add(self, id: bytes, text: str) -> None:
        """Offer a document; memory stays within the limit and one document."""
        key = -int.from_bytes(id, "big")
        if self._size >= self._max_characters and key < self._heap[0][0]:
            return
        part = text[:MAX_DOCUMENT_CHARACTERS]
        heapq.heappush(self._heap, (key, part))
        self._size += len(part)
        # The largest id goes as long as the rest is enough.
        while len(self._heap) > 1 and self._size - len(self._heap[0][1]) >= self._max_characters:
            self._size -= len(heapq.heappop(self._heap)[1])

    def merge(self, others: Iterable[Sample]) -> Sample:
        """Take in the samples of other tasks; the result is that of one task that saw everything."""
        for other in others:
            for key, text in other._heap:
                self.add((-key).to_bytes(16, "big"), text)
        return self

    def texts(self) -> list[str]:
        """The texts by increasing id."""
        return [text for _, text in sorted(self._heap, key=lambda item: -item[0])]
