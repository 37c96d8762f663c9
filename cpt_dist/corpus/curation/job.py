"""What a curation has to do, as values that go to every process: sources, blocks, settings, and where files lie.

A job's work is parted into units (a block of a source, a bucket of hashes). A unit's files depend on the job alone, so
it doesn't matter which process makes them, or how often; a unit is done when its record, written last, is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from cpt_dist.corpus.read import TextField
from cpt_dist.corpus.slices import Block
from cpt_dist.curation_config import JoiningConfig
from cpt_dist.curation_pipeline_config import CurationPipelineConfig
from cpt_dist.files import write_json

EVALUATION, HELD_OUT = "@evaluation", "@held_out"
"""Names of the two sources that nothing that is trained on may repeat: items, whole texts. The first is also their
role."""
PRIORITIES = {EVALUATION: 0, "domain": 2, "replay": 3}
"""Role -> rank; of two like documents that of the lower rank stays."""
HELD_OUT_PRIORITY = 1
"""Rank of documents of any source that will be held out: what is trained on doesn't repeat them."""
READ, EXACT, FIT, SCORE, BANDS, CLUSTERS = "read", "exact", "fit", "score", "bands", "clusters"
PARAGRAPHS, PARAGRAPH_BUCKETS, FINISH, JOIN = "paragraphs", "paragraph_buckets", "finish", "join"
BUCKET_BYTES = 1 << 31
"""Raw bytes for each bucket of hashes; a bucket is what goes through memory at one time."""
JOINED_BLOCKS = 16
"""Blocks of raw text for each bucket of documents that are to be joined."""


@dataclass(frozen=True)
class CuratedSource:
    """One source of a job; the evaluation texts are one too, which goes no further than the search for duplicates."""

    name: str
    role: str
    blocks: tuple[Block, ...]
    text_field: TextField
    steps: Any
    """None for evaluation texts."""
    score_fields: Mapping[str, str] = field(default_factory=dict)
    label_field: str | None = None

    @property
    def is_evaluation(self) -> bool:
        """Whether it's there to be compared with only."""
        return self.role == EVALUATION

    @property
    def fields(self) -> list[str]:
        """Fields of a raw record beside its text that are read."""
        joining = self.joining
        places = [joining.by, joining.order_field] if joining else []
        return sorted({*self.score_fields.values(), *filter(None, [self.label_field, *places])})

    @property
    def joining(self) -> JoiningConfig | None:
        """How its documents are joined, if they are."""
        return self.steps.joining if self.steps is not None and self.steps.joining.by else None

    @property
    def join_buckets(self) -> int:
        """Buckets that its documents are dealt out to for joining; 0 if they aren't joined."""
        return -(-len(self.blocks) // JOINED_BLOCKS) if self.joining else 0


@dataclass(frozen=True)
class Unit:
    """A block of a source, by number over all sources and within its own."""

    number: int
    source: int
    block: int


@dataclass(frozen=True)
class Job:
    """The whole of a curation."""

    folder: Path
    sources: tuple[CuratedSource, ...]
    pipeline: CurationPipelineConfig
    block_bytes: int
    invalid_utf8: str
    held_out_fraction: float
    fingerprint: str
    """Of everything that the result depends on."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Of the file systems of raw files behind URLs."""
    fetch_retries: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: another thread may be filling in a cached property while an executor pickles the job."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def units(self) -> list[Unit]:
        """The blocks of all sources: evaluation texts, then sources by role and in the order of the configuration."""
        by_rank = sorted(range(len(self.sources)), key=lambda index: PRIORITIES[self.sources[index].role])
        places = [(source, block) for source in by_rank for block in range(len(self.sources[source].blocks))]
        return [Unit(number, source, block) for number, (source, block) in enumerate(places)]

    @cached_property
    def raw_bytes(self) -> int:
        """Bytes of all raw files."""
        return sum(block.num_bytes for source in self.sources for block in source.blocks)

    @cached_property
    def num_buckets(self) -> int:
        """Buckets that hashes are dealt out to; it follows from the raw bytes alone."""
        return 1 << (self.raw_bytes // BUCKET_BYTES).bit_length()

    @cached_property
    def join_units(self) -> list[tuple[int, int]]:
        """(source, bucket of its own) of every bucket of documents that are to be joined."""
        return [(number, bucket) for number, one in enumerate(self.sources) for bucket in range(one.join_buckets)]

    def source_of(self, unit: Unit) -> CuratedSource:
        """The source that a unit belongs to."""
        return self.sources[unit.source]

    def stem(self, stage: str, unit: Unit) -> Path:
        """Path, without its ending, of a unit's intermediate files of a stage."""
        return self.folder / "work" / stage / self.source_of(unit).name / f"{unit.block:05d}"

    def bucket_stem(self, stage: str, bucket: int) -> Path:
        """The same of a bucket."""
        return self.folder / "work" / stage / f"{bucket:05d}"

    def output(self, unit: Unit) -> Path:
        """Folder of what a unit's source is curated to."""
        return self.folder / self.source_of(unit).name


def record_path(stem: Path) -> Path:
    """The record of a unit with this stem."""
    return stem.with_name(f"{stem.name}.json")


def is_done(stem: Path) -> bool:
    """Whether all files of a unit are there."""
    return record_path(stem).is_file()


def write_record(stem: Path, record: Mapping[str, Any]) -> None:
    """Write what is known of a finished unit; its other files are in place."""
    write_json(record_path(stem), dict(record))


def read_record(stem: Path) -> dict[str, Any]:
    """The record of a finished unit."""
    return json.loads(record_path(stem).read_text(encoding="utf-8"))


def file_of(stem: Path, ending: str) -> Path:
    """A unit's file; its folder exists afterwards."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem.with_name(f"{stem.name}.{ending}")
