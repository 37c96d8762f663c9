"""Promises of the sample order: every row once an epoch, the plan's shares, nothing but plan, seed and n."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import StageConfig
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource, order_of, source_rows, stage

RAMP = {"general": [[0.0, 0.9], [0.5, 0.5], [1.0, 0.2]], "domain": [[0.0, 0.1], [0.5, 0.5], [1.0, 0.8]]}
SHARE = st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.just([[0.2, 1.0], [0.7, 0.0], [1.0, 3.0]]))
MIXTURE = st.dictionaries(st.sampled_from("abc"), SHARE).map(lambda mixture: {**mixture, "d": 0.8})


def rows_read(order, first=0, count=None):
    samples = order.samples(first, order.num_samples - first if count is None else count)
    return list(zip(samples.source.tolist(), samples.row.tolist(), samples.epoch.tolist(), strict=True))


@given(mixture=MIXTURE, rows=st.lists(st.integers(1, 40), min_size=4, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_exactly_once_an_epoch(mixture, rows, seed):
    sizes = dict(zip("abcd", rows, strict=True))
    order = order_of([stage(200, mixture)], sizes, seed)
    read = rows_read(order)
    assert len(set(read)) == len(read)
    for source, name in enumerate(order.source_names):
        epochs = [epoch for number, _, epoch in read if number == source]
        assert epochs == sorted(epochs)
        for epoch in range(max(epochs, default=0)):
            assert sum(e == epoch for e in epochs) == sizes[name]


@given(mixture=MIXTURE, first=st.integers(0, 300), count=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_sample_is_the_same_alone_in_any_batch_and_after_a_cold_start(mixture, first, count):
    stages = [stage(200, mixture), stage(200, {"a": 1, "b": 1}, name="second")]
    rows = {"a": 17, "b": 5, "c": 300, "d": 40}
    whole = rows_read(order_of(stages, rows))
    cold = order_of(stages, rows)
    assert rows_read(cold, first, count) == whole[first : first + count]
    name, row, epoch = cold.sample(first)
    assert (cold.source_names.index(name), row, epoch) == whole[first]


def test_epochs_differ_and_so_do_seeds_sources_and_sequence_lengths():
    def first_epochs(order, source=0):
        read = [(row, epoch) for number, row, epoch in rows_read(order) if number == source]
        return [[row for row, e in read if e == epoch] for epoch in range(2)]

    two_epochs = [stage(200, {"a": 1, "b": 1})]
    sizes = {"a": 50, "b": 50}
    orders = first_epochs(order_of(two_epochs, sizes, seed=1))
    # seed + epoch as the key would make epoch 1 of seed 1 the same as epoch 0 of seed 2
    orders += first_epochs(order_of(two_epochs, sizes, seed=2))
    orders += first_epochs(order_of(two_epochs, sizes, seed=1), source=1)
    orders += first_epochs(order_of([replace(two_epochs[0], seq_len=16)], sizes, seed=1))
    assert len({tuple(order) for order in orders}) == 8


def test_neither_the_order_of_sources_nor_of_mixture_keys_matters():
    names = {"x": 30, "y": 40, "z": 50}
    one = order_of([stage(200, {"x": 1, "y": 2, "z": 3})], names)
    other = order_of([stage(200, {"z": 3, "y": 2, "x": 1})], dict(reversed(names.items())))
    assert [one.sample(n) for n in range(200)] == [other.sample(n) for n in range(200)]
    assert one.fingerprint == other.fingerprint


@given(mixture=MIXTURE)
@settings(max_examples=40, deadline=None)
def test_shares_of_tokens_are_kept_within_one_row_at_every_sample(mixture):
    order = order_of([stage(160, mixture)], {"a": 17, "b": 5, "c": 300, "d": 40})
    sources = order.samples(0, 160).source
    for n in range(0, 161, 5):
        counts = np.bincount(sources[:n], minlength=4)
        assert counts.tolist() == order.counts(n).tolist()
        planned, counted = order.planned_tokens(n), order.counted_tokens(n)
        assert all(abs(planned[name] - counted[name]) <= 8 + 1e-9 for name in planned)
        assert sum(planned.values()) == pytest.approx(8 * n)


def test_a_source_of_short_rows_gets_more_samples_for_the_same_share_of_tokens():
    sources = [source_rows("full", 1000, mean_tokens=8), source_rows("short", 1000, mean_tokens=2)]
    order = SampleOrder([stage(1000, {"full": 1, "short": 1})], sources, seed=0)
    assert order.counts(1000).tolist() == [200, 800]
    assert order.counted_tokens(1000) == {"full": 1600, "short": 1600}


def test_realised_tokens_of_whole_rows_follow_a_ramp_within_one_row():
    sources = [MemorySource("general", [[16] * 20, [8] * 10]), MemorySource("domain", [[24] * 9])]
    config = StageConfig(tokens="2400", seq_len=8, batch_tokens="32", mixture=RAMP)
    order = SampleOrder.from_sources([config], sources, seed=3)
    assert order.num_samples == 300
    realised = np.zeros(2)
    for n, (source, _, _) in enumerate(rows_read(order)):
        assert np.abs(realised - list(order.planned_tokens(n).values())).max() < 8
        realised[source] += 8


def test_a_stage_goes_on_with_the_rows_that_the_one_before_has_not_read():
    stages = [stage(40, {"a": 1}), stage(40, {"a": 1, "b": 1}, name="two"), stage(40, {"a": 1}, name="three")]
    read = [row for source, row, _ in rows_read(order_of(stages, {"a": 100, "b": 100})) if source == 0]
    assert sorted(read) == list(range(100))


def test_another_sequence_length_counts_its_own_rows():
    stages = [stage(40, {"a": 1}), stage(40, {"a": 1}, name="long", seq_len=16)]
    order = order_of(stages, {"a": 40})
    read = rows_read(order)
    assert sorted(row for _, row, _ in read[:40]) == sorted(row for _, row, _ in read[40:]) == list(range(40))
    assert {epoch for _, _, epoch in read} == {0}
    assert order.epochs(60) == {"a": {8: 1.0, 16: 0.5}}


def test_a_stage_is_rounded_up_to_whole_steps():
    config = StageConfig(name="s", tokens="1000", seq_len=10, batch_tokens="300", mixture={"a": 1})
    plan = StagePlan.from_config(config)
    assert (plan.num_samples, plan.batch_samples, plan.num_steps) == (120, 30, 4)


def test_stage_of_names_the_stage_at_its_first_and_last_sample():
    order = order_of([stage(8, {"a": 1}), stage(12, {"a": 1}, name="two")], {"a": 5})
    assert [order.stage_of(n) for n in (0, 7, 8, 19)] == [0, 0, 1, 1]
    with pytest.raises(IndexError, match="0 to 19"):
        order.stage_of(20)


@pytest.mark.parametrize("call", [lambda o: o.samples(195, 6), lambda o: o.samples(-1, 2), lambda o: o.counts(201)])
def test_samples_outside_the_plan_are_refused(call):
    with pytest.raises(IndexError, match="outside"):
        call(order_of([stage(200, {"a": 1})], {"a": 10}))


def test_a_cold_start_at_sample_1e11_takes_milliseconds():
    def seconds():
        begin = time.process_time()
        order = order_of([stage(10**12, RAMP, batch=256)], {"general": 10**8, "domain": 10**7})
        order.samples(10**11, 256)
        return time.process_time() - begin

    assert min(seconds() for _ in range(5)) < 0.05


def test_a_cold_start_with_a_hundred_sources_a_curriculum_and_a_ledger_takes_a_tenth_of_a_second():
    names = [f"s{number:03d}" for number in range(100)]
    mixture = {name: 1 / (number + 1) for number, name in enumerate(names)}
    curriculum = {"name": "gradual", "start": dict.fromkeys(names, 1.0), "ramp": 0.5, "shape": "cosine"}
    plan = [replace(stage(10**9, mixture, batch=256), num_samples=10**9 // 256 * 256, curriculum=curriculum)]
    rows = [source_rows(name, 10**6 + number, mean_tokens=7.5) for number, name in enumerate(names)]
    ledger = [
        LedgerEntry(256 * 10**5 * at, {name: 1 + number % at for number, name in enumerate(names)}) for at in (2, 5)
    ]

    def seconds():
        begin = time.process_time()
        SampleOrder(plan, rows, 0, ledger).samples(5 * 10**8, 256)
        return time.process_time() - begin

    assert min(seconds() for _ in range(5)) < 0.1


def test_sources_that_are_unknown_or_empty_are_all_named():
    with pytest.raises(UserError) as caught:
        order_of([stage(8, {"wiki": 1, "laws": 1, "void": 0.5})], {"wikis": 10, "laws": 0, "void": 0})
    assert len(caught.value.problems) == 3
    assert "source 'laws' has no rows but a share of 0.4" in str(caught.value)
    assert "did you mean 'wikis'?" in str(caught.value)


def test_an_empty_source_without_a_share_is_no_mistake():
    order = order_of([stage(8, {"a": 1, "void": 0})], {"a": 10, "void": 0})
    assert order.counts(8).tolist() == [8, 0]


def test_the_state_is_small_and_comes_back_from_json_with_its_n():
    order = order_of([stage(200, RAMP)], {"general": 10, "domain": 10})
    text = json.dumps(order.state(120))
    assert len(text) < 300
    assert order.check(json.loads(text)) == 120


def test_the_state_stays_about_a_kilobyte_with_a_hundred_sources():
    names = {f"source-{number:03d}": 10 + number for number in range(100)}
    order = order_of([stage(200, dict.fromkeys(names, RAMP["domain"]))], names)
    assert len(json.dumps(order.state(120))) < 1000
    assert len(json.dumps(order.identity)) > 5000


BASE = [stage(80, {"a": 1, "b": 2}), stage(40, {"a": 1}, name="late")]


@pytest.mark.parametrize(
    ("stages", "rows", "seed", "named"),
    [
        (BASE, {"a": 9, "b": 9}, 5, "seed was 0 and is 5"),
        (BASE[:1], {"a": 9, "b": 9}, 0, "stage 'late' is missing"),
        ([stage(84, {"a": 1, "b": 2}), BASE[1]], {"a": 9, "b": 9}, 0, "samples (tokens) was 80 and is 84"),
        ([BASE[0], stage(40, {"a": 1}, batch=8, name="late")], {"a": 9, "b": 9}, 0, "stage 'late' batch_tokens was 32"),
        ([stage(80, {"a": 1, "b": 3}), BASE[1]], {"a": 9, "b": 9}, 0, "share of source 'b' was 2 and is 3"),
        ([stage(80, {"a": 1, "b": 2}, batch=8), BASE[1]], {"a": 9, "b": 9}, 0, "batch_tokens was 32 and is 64"),
        ([stage(80, {"a": 1, "b": 2}, name="x"), BASE[1]], {"a": 9, "b": 9}, 0, "stage 'main' name was main and is x"),
        ([stage(80, {"a": 1, "b": 2}, seq_len=16), BASE[1]], {"a": 9, "b": 9}, 0, "stage 'main' seq_len was 8"),
    ],
)
def test_a_changed_plan_is_refused_by_the_name_of_what_changed(stages, rows, seed, named):
    before = order_of(BASE, {"a": 9, "b": 9})
    saved, kept = (json.loads(json.dumps(value)) for value in (before.state(80), before.identity))
    of_an_earlier_version = {**kept, "n": 80}  # which held all of it in every checkpoint
    for state, record in ((saved, kept), (of_an_earlier_version, None)):
        with pytest.raises(UserError) as caught:
            order_of(stages, rows, seed).check(state, record)
        assert named in caught.value.problems[0]
        assert all("\n" not in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("stages", "seed", "named"),
    [
        (BASE, 5, "seed was 0 and is 5"),
        (BASE[:1], 0, "there were 2 stages and are 1"),
        (
            [BASE[0], stage(40, {"a": 1}, batch=8, name="late")],
            0,
            "stage 'late' is not what it was; set it back to resume",
        ),
    ],
)
@pytest.mark.parametrize("record", [None, order_of(BASE, {"a": 9, "b": 9}, seed=3).identity])
def test_without_the_record_of_the_run_the_part_that_changed_is_named(stages, seed, named, record):
    state = json.loads(json.dumps(order_of(BASE, {"a": 9, "b": 9}).state(80)))
    with pytest.raises(UserError) as caught:
        order_of(stages, {"a": 9, "b": 9}, seed).check(state, record)
    assert named in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_a_state_is_read_whatever_form_a_number_of_the_plan_has():
    before = order_of([stage(80, {"a": 1, "b": ((0, 2), (1, 3))})], {"a": 9, "b": 9})
    after = order_of([stage(80, {"a": 1.0, "b": [[0.0, 2.0], [1.0, 3.0]]})], {"a": 9, "b": 9})
    assert after.check(json.loads(json.dumps(before.state(40)))) == 40


def test_changed_and_missing_sources_are_refused_by_name():
    sources = [source_rows("a", 9), source_rows("b", 9)]
    before = SampleOrder(BASE, sources, 0)
    state, record = before.state(4), before.identity
    changed = SampleOrder(BASE, [sources[0], replace(sources[1], fingerprint="other")], 0)
    with pytest.raises(UserError, match="source 'b' was fingerprint of b and is other: its shards were made again"):
        changed.check(state, record)
    with pytest.raises(UserError, match=r"^source 'b' is not what it was: its shards were made again"):
        changed.check(state)
    with pytest.raises(UserError, match="source 'b' is missing"):
        SampleOrder([stage(80, {"a": 1})], sources[:1], 0).check(state, record)
    with pytest.raises(UserError, match="has version 99"):
        SampleOrder(BASE, sources, 0).check({**state, "version": 99})


def test_stages_and_sources_added_at_the_end_leave_all_before_as_it_was():
    before = order_of(BASE, {"a": 9, "b": 9})
    after = order_of([*BASE, stage(40, {"c": 1, "a": 1}, name="new")], {"c": 7, "a": 9, "b": 9})
    for state in (before.state(100), {**before.identity, "n": 100}):
        assert after.check(state) == after.check(state, before.identity) == after.check(state, after.identity) == 100
    assert [after.sample(n) for n in range(120)] == [before.sample(n) for n in range(120)]
    assert after.fingerprint != before.fingerprint


def test_the_order_is_that_of_earlier_versions():
    order = order_of([stage(1000, RAMP), stage(50, {"domain": 1}, name="end")], {"general": 90, "domain": 30}, seed=7)
    assert [order.sample(n) for n in (0, 1, 2, 500, 999, 1000, 1049)] == GOLDEN
    assert order.fingerprint == GOLDEN_FINGERPRINT


GOLDEN = [
    ("general", 71, 0),
    ("general", 54, 0),
    ("general", 46, 0),
    ("domain", 27, 5),
    ("domain", 5, 15),
    ("domain", 17, 15),
    ("domain", 4, 17),
]
GOLDEN_FINGERPRINT = "5bf926f2409f38415fd0171e987c775a"
