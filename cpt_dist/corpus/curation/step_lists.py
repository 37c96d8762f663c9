"""The steps that a source's documents go through, by the stage of the pipeline that runs them.

They are built once in a process, from the source's settings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpt_dist.corpus.curation.job import CuratedSource, Job
from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.corpus.step import CuratedDocument, Dropped, Splitter, Step

VERSION = 1
"""Raised when steps give other results from the same settings, so that folders made before are not gone on with."""


@dataclass(frozen=True)
class Steps:
    """The settings of a source's steps."""


def resolved_steps(curation: Mapping[str, Any]) -> Steps:
    """The settings of a source's steps, all of them."""
    return Steps()


def shard_scores(steps: Steps) -> list[str]:
    """The scores that are to become columns of shards."""
    return []


@dataclass(frozen=True)
class StepLists:
    """Steps in their order; what looks at several documents happens between the lists."""

    before_dedup: Sequence[Step | Splitter] = ()
    """Raw text to normalised text with its id."""
    before_near_dedup: Sequence[Step | Splitter] = ()
    """Labels, scores, and drops by them."""
    after_near_dedup: Sequence[Step | Splitter] = ()
    """What changes the text: PII, cleaners."""
    chunking: Sequence[Step | Splitter] = ()
    """What parts it."""


class Normalise:
    """The canonical form of the text, and its id."""

    name = "normalise"

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """`document` normalised; dropped where only white space is left."""
        text = normalise(document.text)
        if not text.strip():
            return Dropped("empty")
        return replace(document, text=text, id=document_id(text))


def step_lists(source: CuratedSource, job: Job | None = None) -> StepLists:
    """The steps of a source; evaluation texts are only normalised."""
    return StepLists(before_dedup=[Normalise()])
