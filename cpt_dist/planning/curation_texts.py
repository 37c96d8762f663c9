"""Texts of curated documents for a report: what stays instead of a duplicate, and where the two differ.

A document is found by the id that it had when duplicates were looked for: it may have become pieces since, or a part of
a joined document. One that went later, or that is a text of the evaluation, isn't found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from pyarrow import parquet

from cpt_dist.corpus.curation.curate import CuratedFolder
from cpt_dist.corpus.ngrams import words_and_places

KEPT_CHARACTERS = 20_000
"""Of a text that is compared with another."""
EXCERPT, BEFORE = 400, 120
"""Characters that are shown, and how many of them stand before the first difference."""
_LIKE = re.compile(r"[\d.]+ like ([0-9a-f]{32}) in '(.*)'")


class KeptTexts:
    """The texts of documents with certain ids, gathered while the curated files are read."""

    def __init__(self, ids: Collection[str]) -> None:
        self._wanted = set(ids)
        self._found: dict[str, tuple[str, str]] = {}

    def texts(self, folder: CuratedFolder) -> Iterator[str]:
        """Every text of a source, in the order of its files; those that are wanted are remembered."""
        places = self._places(folder)
        for entry in folder.manifest["parts"]:
            with parquet.ParquetFile(folder.folder / entry["file"]) as file:
                for batch in file.iter_batches(batch_size=256, columns=["id", "parent", "offset", "text"]):
                    for row in batch.to_pylist():
                        self._look(row, places, folder.manifest["source"])
                        yield row["text"]

    def _places(self, folder: CuratedFolder) -> dict[str, list[tuple[str, int, int]]]:
        """Joined document -> (id, offset, characters) of what is wanted in it."""
        places: dict[str, list[tuple[str, int, int]]] = {}
        for entry in folder.manifest["members"]:
            table = parquet.read_table(folder.folder / entry["file"])
            for row in table.to_pylist():
                if row["id"] in self._wanted:
                    place = (row["id"], row["offset"], row["characters"])
                    places.setdefault(row["document"], []).append(place)
        return places

    def _look(self, row: dict[str, Any], places: dict[str, list[tuple[str, int, int]]], source: str) -> None:
        whole = row["parent"] or row["id"]
        for identity, offset, characters in places.get(whole, [(whole, 0, KEPT_CHARACTERS)]):
            at = offset - row["offset"]
            if identity in self._wanted and 0 <= at < len(row["text"]):
                self._found[identity] = (source, row["text"][at : at + min(characters, KEPT_CHARACTERS)])

    def of(self, identity: str | None) -> tuple[str, str] | None:
        """(source, text) of a document, if it was found."""
        return self._found.get(identity or "")


def keeper_of(row: dict[str, Any]) -> str | None:
    """The id of what stays instead of a dropped duplicate; None for what was dropped for another reason."""
    if row["text"] is None:
        return row["id"]  # an exact duplicate, whose text is kept elsewhere
    found = _LIKE.fullmatch(row["detail"] or "")
    return found[1] if found else None


def excerpts(gone: str, kept: str) -> tuple[str, str]:
    """Of two texts what stands around the first word in which they differ; spaces, case and punctuation don't count."""
    texts = [(text, *words_and_places(text)) for text in (gone, kept)]
    same = 0
    for one, other in zip(texts[0][1], texts[1][1], strict=False):
        if one != other:
            break
        same += 1
    first, second = (_excerpt(text, places, same) for text, _, places in texts)
    return first, second


def _excerpt(text: str, places: list[tuple[int, int]], word: int) -> str:
    """What stands around a word, or the end if there are fewer."""
    at = places[word][0] if word < len(places) else len(text)
    start = max(at - BEFORE, 0) if len(text) > EXCERPT else 0
    return ("…" if start else "") + text[start : start + EXCERPT].strip("\n")
