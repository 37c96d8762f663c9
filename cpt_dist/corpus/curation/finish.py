"""Last stage: near-duplicates and contaminated documents go, the text of the others is cleaned, cut and written.

What was dropped at any stage is gathered here too, so that a source's folder tells the fate of every raw record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cpt_dist.corpus.curation.apply import Tally, apply
from cpt_dist.corpus.curation.decontaminate import Decontaminate
from cpt_dist.corpus.curation.job import (
    EVALUATION,
    FINISH,
    READ,
    SCORE,
    Job,
    Unit,
    file_of,
    read_record,
    write_record,
)
from cpt_dist.corpus.curation.join import ENDING, write_by_bucket
from cpt_dist.corpus.curation.near import near_duplicates_of
from cpt_dist.corpus.curation.paragraphs import ParagraphCutter
from cpt_dist.corpus.curation.parts import PartFiles, file_entry
from cpt_dist.corpus.curation.score import first_record
from cpt_dist.corpus.curation.step_lists import after_near_dedup, of_chunking
from cpt_dist.corpus.curation.tables import (
    DROPPED,
    REMOVED,
    DroppedDocument,
    TableWriter,
    copy_dropped,
    dropped_row,
    read_documents,
    removed_row,
)
from cpt_dist.corpus.step import CuratedDocument, Dropped, RemovedText, Splitter, Step

NEAR_STEP = "near_duplicates"
NEAR_DUPLICATE = "near_duplicate"


def _steps(job: Job, unit: Unit) -> Sequence[Step | Splitter]:
    """The steps for documents that are no near-duplicates, up to chunking."""
    source = job.source_of(unit)
    has_evaluation = any(source.name == EVALUATION for source in job.sources)
    paragraphs = [ParagraphCutter(job, unit)] if job.pipeline.paragraph_duplicates.enabled else []
    decontaminate = [Decontaminate(job)] if has_evaluation else []
    return [*paragraphs, *after_near_dedup(source), *decontaminate]


def finish_unit(job: Job, unit: Unit) -> None:
    """Write `unit`'s curated documents (or those that are to be joined), and all that was taken out on the way."""
    source, tally = job.source_of(unit), Tally()
    stem = job.stem(FINISH, unit)
    if source.is_evaluation:
        write_record(stem, {**tally.as_json(), "job": job.fingerprint, "parts": [], "dropped": None, "removed": None})
        return
    folder = job.output(unit)
    folder.mkdir(parents=True, exist_ok=True)
    scored = job.stem(SCORE, unit)
    parts = PartFiles(folder, unit.block, job.block_bytes, read_record(scored)["columns"])
    chunking = of_chunking(source)
    to_join: list[CuratedDocument] = []
    dropped, removed = (folder / f"{kind}-{unit.block:05d}.parquet" for kind in ("dropped", "removed"))
    with TableWriter(dropped, DROPPED) as dropped_rows, TableWriter(removed, REMOVED) as removed_rows:
        copy_dropped(file_of(job.stem(READ, unit), "dropped.parquet"), dropped_rows, first_record(job, unit))
        copy_dropped(file_of(scored, "dropped.parquet"), dropped_rows, 0)
        for result in _finished(job, unit, tally):
            if isinstance(result, DroppedDocument):
                dropped_rows.add(dropped_row(result, source.name), result.num_bytes)
            elif isinstance(result, RemovedText):
                removed_rows.add(removed_row(result, source.name), result.end - result.start)
            else:
                tally.note(result)  # whole, as each chunk carries all that was counted
                if source.joining:
                    to_join.append(result)
                    continue
                for piece in apply(chunking, result, tally):
                    assert isinstance(piece, CuratedDocument), piece
                    parts.add(piece)
        parts.close()
    record: dict[str, Any] = {
        "job": job.fingerprint,
        "parts": parts.files,
        "dropped": file_entry(dropped, dropped_rows.num_rows),
        "removed": file_entry(removed, removed_rows.num_rows) if removed_rows.num_rows else None,
    }
    if not removed_rows.num_rows:
        removed.unlink()
    if source.joining:
        record["row_groups_by_bucket"] = write_by_bucket(file_of(stem, ENDING), to_join, source.join_buckets)
    write_record(stem, {**tally.as_json(), **record})


def _finished(job: Job, unit: Unit, tally: Tally) -> Iterator[CuratedDocument | DroppedDocument | RemovedText]:
    """What becomes of each scored document, up to chunking."""
    near, steps = near_duplicates_of(job, unit), _steps(job, unit)
    scored = file_of(job.stem(SCORE, unit), "parquet")
    for row, document in enumerate(read_documents(scored, job.source_of(unit).name)):
        size = len(document.text.encode())
        if row in near:
            tally.of(NEAR_STEP).drop(NEAR_DUPLICATE, size)
            yield DroppedDocument.of(document, NEAR_STEP, _near_reason(job, near[row]))
            continue
        tally.of(NEAR_STEP).keep(size, size)
        yield from apply(steps, document, tally)


def _near_reason(job: Job, entry: Any) -> Dropped:
    keeper = job.source_of(job.units[int(entry["keeper"])]).name
    similarity = f"{float(entry['similarity']):.2f}"
    return Dropped(NEAR_DUPLICATE, f"{similarity} like {bytes(entry['keeper_id']).hex()} in '{keeper}'")
