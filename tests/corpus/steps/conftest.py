"""Documents for tests of single steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpt_dist.corpus.normalise import document_id
from cpt_dist.corpus.step import CuratedDocument, Origin


@pytest.fixture
def document() -> Callable[..., CuratedDocument]:
    def make(text: str, **fields: object) -> CuratedDocument:
        return CuratedDocument(document_id(text), text, "books", Origin("books.jsonl", 0), **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def prose() -> str:
    """A page of natural English, every sentence of it different."""
    return (
        "The harbour of the old town lies to the south of the market, and on most mornings the boats return before "
        "the bells of the church have rung for the first time. Nobody who lives there thinks of this as a spectacle. "
        "A fisherman with a red cap sells what he has caught from the deck, while his daughter keeps the accounts in "
        "a notebook that was once meant for school.\n\n"
        "Visitors ask why the houses are painted in such strong colours. One answer is that sailors wanted to see "
        "their own door from the water; another, less romantic, is that paint for ships was cheap and had to be used "
        "up. Both may be true, since a habit rarely has only one cause. In winter, when the fog hides everything "
        "beyond the pier, the yellow and the blue walls are the only thing that still looks like summer.\n\n"
        "There have been plans for a new quay since the war, but each of them was given up for want of money or of "
        "agreement. The engineers wished to build it of concrete, the council preferred granite from the island, and "
        "the fishermen asked to be left alone with the wooden piles that their grandfathers had driven into the mud.\n"
    )


@pytest.fixture
def code() -> str:
    return (
        '"""Counts words."""\n\nimport sys\nfrom collections import Counter\n\n\ndef count(path):\n'
        "    with open(path) as handle:\n        words = handle.read().split()\n    if not words:\n        return {}\n"
        "    return Counter(words)\n\n\nif __name__ == '__main__':\n"
        "    for word, number in count(sys.argv[1]).items():\n        print(f'{word}: {number}')\n"
    )
