"""From steps to documents and from a document to steps, by arithmetic on the order and the files' indices.

Forward is what the loader does without the tokens; backward runs packing, permutation and quotas the other way round,
so neither scans samples. Nothing is written here, and what a run has really done is known by `ledger.py`, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.data.masking import TakenDown
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import PackPlan, RowSource, document_pieces
from cpt_dist.data.plans import RowsKey, make_plan
from cpt_dist.data.stage_plan import StagePlan


@dataclass(frozen=True)
class Place:
    """Where a document lies: token offsets [start, stop) are within the shard."""

    source: int
    """Index into `SampleOrder.source_names`."""
    shard: int
    document: int
    """Its number within the shard."""
    start: int
    stop: int


@dataclass(frozen=True)
class Reading:
    """The tokens [start, stop) of a document, counted from its first token, that one sample reads."""

    step: int
    """Optimizer step, counted from 1 as in metrics.jsonl."""
    sample: int
    """Global index n."""
    epoch: int
    row: int
    place: Place
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the document that the sample reads."""
        return self.stop - self.start


def samples_of_step(order: SampleOrder, step: int) -> tuple[int, int]:
    """First sample and number of samples of an optimizer step; raises IndexError outside 1 to the last step."""
    rest = step - 1
    for start, stage in zip(order.stage_starts, order.stages, strict=False):
        if 0 <= rest < stage.num_steps:
            return start + rest * stage.batch_samples, stage.batch_samples
        rest -= stage.num_steps
    raise IndexError(f"step {step} is outside 1 to {sum(stage.num_steps for stage in order.stages)}")


def step_of_sample(order: SampleOrder, n: int) -> int:
    """The optimizer step, counted from 1, that reads sample n; raises IndexError outside the plan."""
    stage = order.stage_of(n)
    before = sum(plan.num_steps for plan in order.stages[:stage])
    return before + (n - order.stage_starts[stage]) // order.stages[stage].batch_samples + 1


def plans(sources: Sequence[RowSource], stage: StagePlan) -> list[PackPlan]:
    """The plan of rows of each source in a stage."""
    return [make_plan(source, stage.seq_len, stage.packing) for source in sources]


def readings_of_steps(order: SampleOrder, sources: Sequence[RowSource], first: int, last: int) -> Iterator[Reading]:
    """Every piece of a document that the steps `first` to `last` read, in order; none taken down or skipped.

    `sources` are in the order of `order.source_names`. Raises IndexError for a step outside the plan.
    """
    packs: dict[RowsKey, list[PackPlan]] = {}
    taken = TakenDown(order.take_downs)
    for step in range(first, last + 1):
        start, count = samples_of_step(order, step)
        if start in order.skipped:
            continue
        stage = order.stages[order.stage_of(start)]
        packs.setdefault(stage.rows_key, plans(sources, stage))
        samples = order.samples(start, count)
        triples = zip(samples.source.tolist(), samples.row.tolist(), samples.epoch.tolist(), strict=True)
        for n, (source, row, epoch) in enumerate(triples, start):
            where = packs[stage.rows_key][source].row(row)
            offsets = sources[source].doc_offsets(where.shard)
            spans = taken.cut(sources[source], where.shard, where.spans, n)[0] if taken else where.spans
            for span_start, span_stop in spans:
                number, bounds = document_pieces(offsets, span_start, span_stop)
                for piece in np.flatnonzero(np.diff(bounds)).tolist():
                    place = _place(offsets, source, where.shard, number + piece)
                    begin, end = (int(bounds[piece + at]) - place.start for at in (0, 1))
                    yield Reading(step, n, epoch, row, place, begin, end)


def readings_of_place(order: SampleOrder, sources: Sequence[RowSource], place: Place) -> list[Reading]:
    """Every reading of a document that the whole plan holds, rising by sample: past and future ones alike.

    Where it was taken down, readings end there.
    """
    found = []
    taken = TakenDown(order.take_downs)
    since = taken.since(sources[place.source].doc_ids(place.shard)[place.document].tobytes())
    for key, stage in {stage.rows_key: stage for stage in order.stages}.items():
        plan = make_plan(sources[place.source], stage.seq_len, stage.packing)
        for row in plan.rows_of(place.shard, place.start, place.stop).tolist():
            spans = [(max(a, place.start), min(b, place.stop)) for a, b in plan.row(row).spans]
            for n, epoch in order.readings(place.source, key, row):
                if n in order.skipped or (since is not None and n >= since):
                    continue
                step = step_of_sample(order, n)
                found += [
                    Reading(step, n, epoch, row, place, a - place.start, b - place.start) for a, b in spans if a < b
                ]
    return sorted(found, key=lambda reading: (reading.sample, reading.start))


def find_document(sources: Sequence[RowSource], doc_id: bytes) -> list[Place]:
    """Where the training document with a 16-byte id lies; reads the sources' columns of ids, no tokens."""
    wanted = np.frombuffer(doc_id, dtype=np.uint8)
    found = []
    for number, source in enumerate(sources):
        for shard in range(len(source.shard_tokens)):
            ids = source.doc_ids(shard)
            documents = np.flatnonzero((ids == wanted).all(axis=1))
            own = source.documents(shard)
            for document in (documents if own is None else documents[np.isin(documents, own)]).tolist():
                found.append(_place(source.doc_offsets(shard), number, shard, document))
    return found


def _place(offsets: np.ndarray, source: int, shard: int, document: int) -> Place:
    return Place(source, shard, document, int(offsets[document]), int(offsets[document + 1]))
