"""How much of a text repeats itself: lines, paragraphs, runs of words, and the variety of words.

The measures are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), with one change: a run of words counts
as repeated only if it stood there at most `window` words before. Without that, and with the ratio of types to tokens,
every long text looks repetitive, as new words become rarer with length (Heaps' law).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpt_dist.corpus.steps.text_view import TextView, ngrams

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


def _top_share(hashes: np.ndarray, lengths: np.ndarray, n: int, characters: int) -> float:
    """Share of characters in the commonest run of n words, if it occurs twice."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = counts.max(initial=0)
    if most < 2:
        return 0.0
    place = first[counts == most].min()
    return min(float(most * lengths[place : place + n].sum()) / characters, 1.0)


def _repeated_share(hashes: np.ndarray, lengths: np.ndarray, n: int, characters: int, window: int) -> float:
    """Share of characters in runs of n words that occurred at most `window` words before, each counted once."""
    previous = previous_places(hashes)
    places = np.flatnonzero((previous != NEVER) & (np.arange(len(hashes)) - previous <= window))
    if not len(places):
        return 0.0
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + n, -1)
    return float(lengths[np.cumsum(edges[:-1]) > 0].sum()) / characters


def repetition_measures(view: TextView, window: int) -> dict[str, float]:
    """duplicate_lines, duplicate_line_characters, the same of paragraphs, top_2gram to top_4gram, duplicate_5gram to
    duplicate_10gram and variety; shares between 0 and 1, 0 where a text is too short for the measure.
    """
    measures = {}
    measures["duplicate_lines"], measures["duplicate_line_characters"] = _duplicate_shares(view.lines)
    measures["duplicate_paragraphs"], measures["duplicate_paragraph_characters"] = _duplicate_shares(view.paragraphs)
    words, lengths = view.word_hashes, view.word_lengths
    characters = max(int(lengths.sum()), 1)
    run, repeats = words, True
    for n in range(2, max(DUPLICATE_NGRAMS) + 1):
        # What repeats as n words repeats as n - 1 words too, so a 0 stays.
        run = ngrams(words, run, n) if repeats and len(run) > 1 else run[:0]
        if n in TOP_NGRAMS:
            share = measures[f"top_{n}gram"] = _top_share(run, lengths, n, characters)
            repeats = share > 0
        else:
            share = _repeated_share(run, lengths, n, characters, window) if len(run) else 0.0
            measures[f"duplicate_{n}gram"] = share
            repeats = share > 0
    measures["variety"] = variety(words)
    return measures
