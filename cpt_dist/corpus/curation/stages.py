"""The stages of a curation: what each one does to a unit, what its units are, and the step of datatrove that runs it.

A stage begins when the one before it has done all its units. What a task does is decided by its rank alone; units that
are done already, by another number of tasks or before a kill, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_dist.corpus.curation.exact import exact_bucket
from cpt_dist.corpus.curation.finish import finish_unit
from cpt_dist.corpus.curation.fit import fit_all, is_fitted
from cpt_dist.corpus.curation.job import (
    BANDS,
    CLUSTERS,
    EXACT,
    FINISH,
    FIT,
    JOIN,
    PARAGRAPH_BUCKETS,
    PARAGRAPHS,
    READ,
    SCORE,
    Job,
    Unit,
    is_done,
)
from cpt_dist.corpus.curation.join import join_bucket
from cpt_dist.corpus.curation.near import band_bucket, band_buckets, find_clusters
from cpt_dist.corpus.curation.paragraphs import paragraph_bucket, paragraphs_unit
from cpt_dist.corpus.curation.read import read_unit
from cpt_dist.corpus.curation.score import score_unit


@dataclass(frozen=True)
class Stage:
    """One stage: either of blocks or of buckets."""

    name: str
    of_block: Callable[[Job, Unit], None] | None = None
    of_bucket: Callable[[Job, int], None] | None = None
    num_buckets: Callable[[Job], int] = lambda job: job.num_buckets

    def units(self, job: Job) -> list[tuple[Path, Any]]:
        """(stem, block or bucket) of each unit."""
        if self.of_block is not None:
            return [(job.stem(self.name, unit), unit) for unit in job.units]
        return [(job.bucket_stem(self.name, bucket), bucket) for bucket in range(self.num_buckets(job))]

    def left(self, job: Job) -> list[Any]:
        """The units that are still to be done."""
        return [unit for stem, unit in self.units(job) if not is_done(stem)]

    def bytes_of_unit(self, job: Job) -> float:
        """Raw bytes behind a unit, on average."""
        return job.raw_bytes / max(1, len(self.units(job)))

    def do(self, job: Job, unit: Any) -> None:
        """Do one unit."""
        if self.of_block is not None:
            self.of_block(job, unit)
        elif self.of_bucket is not None:
            self.of_bucket(job, unit)


STAGES = {
    stage.name: stage
    for stage in (
        Stage(READ, of_block=read_unit),
        Stage(EXACT, of_bucket=exact_bucket),
        Stage(FIT, of_bucket=lambda job, _: fit_all(job), num_buckets=lambda job: 1),
        Stage(SCORE, of_block=score_unit),
        Stage(BANDS, of_bucket=band_bucket, num_buckets=band_buckets),
        Stage(CLUSTERS, of_bucket=lambda job, _: find_clusters(job), num_buckets=lambda job: 1),
        Stage(PARAGRAPHS, of_block=paragraphs_unit),
        Stage(PARAGRAPH_BUCKETS, of_bucket=paragraph_bucket),
        Stage(FINISH, of_block=finish_unit),
        Stage(JOIN, of_bucket=join_bucket, num_buckets=lambda job: len(job.join_units)),
    )
}


def stages_of(job: Job) -> list[Stage]:
    """The stages of a job, in their order."""
    left_out = set() if any(map(is_fitted, job.sources)) else {FIT}
    if not job.join_units:
        left_out |= {JOIN}
    if not job.pipeline.near_duplicates.enabled:
        left_out |= {BANDS, CLUSTERS}
    if not job.pipeline.paragraph_duplicates.enabled:
        left_out |= {PARAGRAPHS, PARAGRAPH_BUCKETS}
    return [stage for name, stage in STAGES.items() if name not in left_out]
