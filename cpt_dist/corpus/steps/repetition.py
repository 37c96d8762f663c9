"""How much of a text repeats itself: lines, paragraphs, runs of words, and the variety of words.

The measures are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), with one change: a run of words counts
as repeated only if it stood there at most `window` words before. Without that, and with the ratio of types to tokens,
every long text looks repetitive, as new words become rarer with length (Heaps' law).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpt_dist.corpus.steps.text_view import TextView

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
VARIETY_WINDOW_WORDS = 100
NEVER = -1


def previous_places(words: np.ndarray) -> np.ndarray:
    """[n] place of the occurrence before of the same word (or its number or hash), or -1."""
    order = np.argsort(words, kind="stable")
    ordered = words[order]
    same = ordered[1:] == ordered[:-1]
    previous = np.full(len(words), NEVER, dtype=np.int64)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def variety(words: np.ndarray, window: int = VARIETY_WINDOW_WORDS) -> float:
    """Mean over all windows of `window` words of the share of different words in it (MATTR, Covington & McFall 2010).

    A text shorter than the window is one window. 1 for an empty text. All windows are counted at once: word i is the
    first of its kind in those that begin after the occurrence before it.
    """
    count = len(words)
    if not count:
        return 1.0
    window = min(window, count)
    places = np.arange(count)
    first_start = np.maximum(previous_places(words) + 1, places - window + 1)
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
    """Runs of n words in a row that occur twice, for n = 1, 2, …

    What repeats as n words repeats as n - 1 words at the same places, so each length looks only at what the one before
    left; of ordinary prose that is a few hundredths from n = 4 on, and mostly nothing from n = 6 on. Runs are numbered,
    not hashed: a run of n words is the number of its first n - 1 and that of its last one.
    """

    def __init__(self, words: np.ndarray, lengths: np.ndarray) -> None:
        self._words, self._lengths = words, lengths
        self._characters = max(int(lengths.sum()), 1)
        self._count = int(words.max(initial=0)) + 1
        self._places = (np.bincount(words, minlength=1)[words] > 1).nonzero()[0]
        self._numbers = words[self._places]
        """Of the run at each place, in the order of the places."""
        self._ordered = self._same = self._places[:0]
        self.n = 1

    def lengthen(self) -> bool:
        """Go on to runs of one word more; False where none of them occurs twice, as no longer one does then."""
        self.n += 1
        fits = int(self._places.searchsorted(len(self._words) - self.n, side="right"))
        places = self._places[:fits]
        if len(places) < 2:
            return False
        keys = self._numbers[:fits] * self._count + self._words[places + (self.n - 1)]
        order = keys.argsort(kind="stable")
        keys = keys[order]
        self._same = keys[1:] == keys[:-1]
        """Whether a run is the one before it in `_ordered`."""
        if not self._same.any():
            return False
        self._ordered = places[order]
        twice = np.zeros(fits, dtype=bool)
        twice[1:] = self._same
        twice[:-1] |= self._same
        numbers, kept = np.empty(fits, dtype=np.int64), np.empty(fits, dtype=bool)
        numbers[order[0]] = 0
        numbers[order[1:]] = (~self._same).cumsum()
        kept[order] = twice
        self._places, self._numbers = places[kept], numbers[kept]
        return True

    def top_share(self) -> float:
        """Share of characters in the commonest run, the first of them if several are."""
        is_edge = np.ones(len(self._ordered) + 1, dtype=bool)
        is_edge[1:-1] = ~self._same
        edges = is_edge.nonzero()[0]
        sizes = edges[1:] - edges[:-1]
        most = int(sizes.max())
        place = self._ordered[edges[:-1][sizes == most]].min()
        return min(float(most * self._lengths[place : place + self.n].sum()) / self._characters, 1.0)

    def repeated_share(self, window: int) -> float:
        """Share of characters in runs that occurred at most `window` words before, each character counted once."""
        distance = self._ordered[1:] - self._ordered[:-1]
        places = self._ordered[1:][self._same & (distance <= window)]
        if not len(places):
            return 0.0
        edges = np.bincount(places, minlength=len(self._words) + 1)
        edges -= np.bincount(places + self.n, minlength=len(self._words) + 1)
        return float(self._lengths[edges[:-1].cumsum() > 0].sum()) / self._characters


def repetition_measures(view: TextView, window: int) -> dict[str, float]:
    """duplicate_lines, duplicate_line_characters, the same of paragraphs, top_2gram to top_4gram, duplicate_5gram to
    duplicate_10gram and variety; shares between 0 and 1, 0 where a text is too short for the measure.
    """
    measures = {}
    measures["duplicate_lines"], measures["duplicate_line_characters"] = _duplicate_shares(view.lines)
    measures["duplicate_paragraphs"], measures["duplicate_paragraph_characters"] = _duplicate_shares(view.paragraphs)
    runs, repeats = _Runs(view.word_numbers, view.word_lengths), True
    for n in range(2, max(DUPLICATE_NGRAMS) + 1):
        repeats = repeats and runs.lengthen()
        if n in TOP_NGRAMS:
            measures[f"top_{n}gram"] = runs.top_share() if repeats else 0.0
        else:
            measures[f"duplicate_{n}gram"] = runs.repeated_share(window) if repeats else 0.0
    measures["variety"] = variety(view.word_numbers)
    return measures
