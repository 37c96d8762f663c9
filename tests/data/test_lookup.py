"""Promises of the lookups: forward is what batches hold, backward is forward turned round."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data.batches import build_batch
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.lookup import (
    find_document,
    plans,
    readings_of_place,
    readings_of_steps,
    samples_of_step,
    step_of_sample,
)
from cpt_dist.data.mixture import Quotas
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import ConcatAndChunk
from cpt_dist.data.stage_plan import SourceRows, StagePlan
from tests.helpers.memory_sources import MemorySource, order_of, stage

RAMP = {"a": [[0.0, 0.9], [1.0, 0.2]], "b": [[0.0, 0.1], [0.5, 0.0], [1.0, 0.8]]}


def order_over(sources, stages):
    lengths = {plan.seq_len for plan in stages}
    rows = []
    for source in sources:
        packs = {n: ConcatAndChunk(source.shard_tokens, n) for n in lengths}
        rows.append(
            SourceRows(source.name, source.fingerprint, {n: (p.num_rows, p.num_tokens) for n, p in packs.items()})
        )
    return SampleOrder(stages, rows, seed=3)


@pytest.fixture(scope="module")
def run():
    sources = [MemorySource("a", [[3, 0, 20, 9], [15, 1]]), MemorySource("b", [[7, 8], [30]], first_document=50)]
    stages = [
        stage(40, RAMP),
        stage(24, {"b": 1}, name="long", seq_len=16, batch=8),
        stage(40, {"a": 0.5, "b": 0.5}, name="last"),
    ]
    return order_over(sources, stages), sources


def test_steps_and_samples_are_each_others_inverse(run):
    order, _ = run
    num_steps = sum(plan.num_steps for plan in order.stages)
    seen = []
    for step in range(1, num_steps + 1):
        first, count = samples_of_step(order, step)
        seen += range(first, first + count)
        assert {step_of_sample(order, n) for n in range(first, first + count)} == {step}
    assert seen == list(range(order.num_samples))
    for step in (0, num_steps + 1):
        with pytest.raises(IndexError, match=f"step {step} is outside"):
            samples_of_step(order, step)


def test_the_readings_of_a_step_are_the_pieces_of_its_batches(run):
    order, sources = run
    for step in (1, 7, 11, 14, 23):
        first, count = samples_of_step(order, step)
        samples = order.samples(first, count)
        packs = plans(sources, order.stages[order.stage_of(first)])
        batch = build_batch(sources, packs, samples.source, samples.row, np.arange(first, first + count))
        readings = list(readings_of_steps(order, sources, step, step))
        assert [reading.num_tokens for reading in readings] == np.diff(batch.cu_seqlens.numpy()).tolist()
        ids = [sources[r.place.source].doc_ids(r.place.shard)[r.place.document].tolist() for r in readings]
        assert ids == batch.doc_ids.tolist()


def test_a_document_is_found_in_exactly_the_steps_that_read_it(run):
    order, sources = run
    num_steps = sum(plan.num_steps for plan in order.stages)
    forward = {}
    for reading in readings_of_steps(order, sources, 1, num_steps):
        forward.setdefault(reading.place, []).append(reading)
    assert len(forward) == 8
    for place, readings in forward.items():
        expected = sorted(readings, key=lambda reading: (reading.sample, reading.start))
        assert readings_of_place(order, sources, place) == expected


def test_a_document_is_found_by_its_id_alone(run):
    _, sources = run
    (place,) = find_document(sources, bytes([51] * 16))
    assert (place.source, place.shard, place.document, place.start, place.stop) == (1, 0, 1, 7, 15)
    assert find_document(sources, bytes([99] * 16)) == []


def test_a_document_is_found_only_in_the_sources_that_it_belongs_to():
    parts = [MemorySource("a/low", [[3, 4, 5]], selected=[[0, 2]]), MemorySource("a/high", [[3, 4, 5]], selected=[[1]])]
    (place,) = find_document(parts, bytes([1] * 16))
    assert (place.source, place.start, place.stop) == (1, 3, 7)


@given(weights=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_the_place_of_each_draw_is_where_the_split_puts_it(weights):
    quotas = Quotas([0, 60], weights)
    for source, first, places in quotas.split(0, 60):
        assert [quotas.place(source, first + i) for i in range(places.size)] == places.tolist()
        for index in (-1, int(quotas.counts(60)[source])):
            with pytest.raises(IndexError, match="no sample"):
                quotas.place(source, index)


def test_a_row_of_a_long_run_is_found_without_a_scan():
    order = order_of([stage(4 * 10**9, {"a": 0.7, "b": 0.3}, seq_len=8)], {"a": 10**9 + 7, "b": 10**9})
    n = 3_777_777_777
    name, row, epoch = order.sample(n)
    assert (n, epoch) in order.readings(order.source_names.index(name), 8, row)


@given(shards=st.lists(st.integers(0, 60), min_size=1, max_size=4), seq_len=st.integers(1, 25), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_of_a_span_are_those_that_hold_its_tokens(shards, seq_len, data):
    plan = ConcatAndChunk(np.array(shards), seq_len)
    shard = data.draw(st.integers(0, len(shards) - 1))
    start = data.draw(st.integers(0, shards[shard]))
    stop = data.draw(st.integers(start, shards[shard]))
    holding = []
    for index in range(plan.num_rows):
        row = plan.row(index)
        if row.shard == shard and any(max(a, start) < min(b, stop) for a, b in row.spans):
            holding.append(index)
    assert plan.rows_of(shard, start, stop).tolist() == holding


def test_a_row_is_found_again_across_a_change_of_shares():
    plan = StagePlan("main", 400, 16, 8, {"a": 0.5, "b": 0.5})
    sources = [SourceRows("a", "fa", {16: (60, 960)}), SourceRows("b", "fb", {16: (90, 1440)})]
    entries = [LedgerEntry(80, {"a": 0.9, "b": 0.1}, "test", {}), LedgerEntry(200, {"a": 0.2, "b": 0.8}, "test", {})]
    order = SampleOrder([plan], sources, seed=3, ledger=entries)
    samples = order.samples(0, 400)
    for n in range(400):
        found = order.readings(int(samples.source[n]), 16, int(samples.row[n]))
        assert (n, int(samples.epoch[n])) in found
