"""How much of a text repeats itself: lines, paragraphs, runs of words, and the variety of words.

The measures are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), with one change: a run of words counts
as repeated only if it stood there at most `window` words before. Without that, and with the ratio of types to tokens,
every long text looks repetitive, as new words become rarer with length (Heaps' law).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpt_dist.corpus.steps.text_view import MULTIPLIER, TextView

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
VARIETY_WINDOW_WORDS = 100
NEVER = -1


def previous_places(hashes: np.ndarray) -> np.ndarray:
    """[n] place of the occurrence before of the same hash, or -1."""
    order = np.argsort(hashes, kind="stable")
    same = np.empty(len(order), dtype=bool)
    same[:1] = False
    same[1:] = hashes[order[1:]] == hashes[order[:-1]]
    previous = np.full(len(hashes), NEVER, dtype=np.int64)
    places = np.flatnonzero(same)
    previous[order[places]] = order[places - 1]
    return previous


def variety(hashes: np.ndarray, window: int = VARIETY_WINDOW_WORDS) -> float:
    """Mean over all windows of `window` words of the share of different words in it (MATTR, Covington & McFall 2010).

    A text shorter than the window is one window. 1 for an empty text. All windows are counted at once: word i is the
    first of its kind in those that begin after the occurrence before it.
    """
    count = len(hashes)
    if not count:
        return 1.0
    window = min(window, count)
    places = np.arange(count)
    first_start = np.maximum(previous_places(hashes) + 1, places - window + 1)
    last_start = np.minimum(places, count - window)
    starts = np.maximum(last_start - np.maximum(first_start, 0) + 1, 0)
    return float(starts.sum()) / (window * (count - window + 1))


def _duplicate_shares(parts: Sequence[str]) -> tuple[float, float]:
    """(share of the parts, share of their characters) that stood there before."""
    characters = sum(map(len, parts))
    if not characters:
        return 0.0, 0.0
    different = dict.fromkeys(parts)
    return 1 - len(different) / len(parts), 1 - sum(map(len, different)) / characters


class _Runs:
    """Runs of n words in a row that may occur twice, for n = 1, 2, …

    What repeats as n words repeats as n - 1 words at the same places, so each length looks only at what the one before
    left; of ordinary prose that is a few hundredths from n = 4 on.
    """

    def __init__(self, words: np.ndarray, lengths: np.ndarray) -> None:
        self._words, self._lengths = words, lengths
        self._characters = max(int(lengths.sum()), 1)
        self._places, self._hashes = np.arange(len(words)), words
        self.n = 1

    def lengthen(self) -> None:
        """Go on to runs of one word more."""
        self.n += 1
        fits = self._places + self.n <= len(self._words)
        self._places = self._places[fits]
        self._hashes = self._hashes[fits] * MULTIPLIER + self._words[self._places + self.n - 1]
        self._order = np.argsort(self._hashes, kind="stable")
        ordered = self._hashes[self._order]
        is_first = np.ones(len(ordered), dtype=bool)
        is_first[1:] = ordered[1:] != ordered[:-1]
        self._starts = np.flatnonzero(is_first)
        self._sizes = np.diff(self._starts, append=len(ordered))

    def forget_single(self) -> None:
        """Leave out the runs that occur once."""
        kept = np.sort(self._order[np.repeat(self._sizes, self._sizes) > 1])
        self._places, self._hashes = self._places[kept], self._hashes[kept]

    def top_share(self) -> float:
        """Share of characters in the commonest run, the first of them if several are, if it occurs twice."""
        most = int(self._sizes.max(initial=0))
        if most < 2:
            return 0.0
        place = self._places[self._order[self._starts[self._sizes == most]]].min()
        return min(float(most * self._lengths[place : place + self.n].sum()) / self._characters, 1.0)

    def repeated_share(self, window: int) -> float:
        """Share of characters in runs that occurred at most `window` words before, each character counted once."""
        ordered = self._places[self._order]
        distance = np.diff(ordered, prepend=0)
        distance[self._starts] = window + 1
        places = ordered[distance <= window]
        if not len(places):
            return 0.0
        edges = np.bincount(places, minlength=len(self._words) + 1)
        edges[: len(self._words) + 1] -= np.bincount(places + self.n, minlength=len(self._words) + 1)
        return float(self._lengths[np.cumsum(edges[:-1]) > 0].sum()) / self._characters


def repetition_measures(view: TextView, window: int) -> dict[str, float]:
    """duplicate_lines, duplicate_line_characters, the same of paragraphs, top_2gram to top_4gram, duplicate_5gram to
    duplicate_10gram and variety; shares between 0 and 1, 0 where a text is too short for the measure.
    """
    measures = {}
    measures["duplicate_lines"], measures["duplicate_line_characters"] = _duplicate_shares(view.lines)
    measures["duplicate_paragraphs"], measures["duplicate_paragraph_characters"] = _duplicate_shares(view.paragraphs)
    runs = _Runs(view.word_hashes, view.word_lengths)
    for n in range(2, max(DUPLICATE_NGRAMS) + 1):
        runs.lengthen()
        if n in TOP_NGRAMS:
            measures[f"top_{n}gram"] = runs.top_share()
        else:
            measures[f"duplicate_{n}gram"] = runs.repeated_share(window)
        runs.forget_single()
    measures["variety"] = variety(view.word_hashes)
    return measures
