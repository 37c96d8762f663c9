"""Promises of ledger and caps: nothing before a change moves, nothing is read twice or left out, no cap is passed."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data.caps import Cap
from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.mixture import Quotas
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.stage_counts import StageCounts
from cpt_dist.data.stage_plan import SourceRows
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import order_of, source_rows, stage

SIZES = {"a": 40, "b": 30, "c": 90}
STAGES = [stage(200, {"a": 1, "b": [[0, 0], [0.5, 2]], "c": 3}), stage(120, {"a": 1, "c": 1}, name="late")]
WEIGHTS = st.dictionaries(st.sampled_from("abc"), st.floats(0.05, 3), min_size=1)


@st.composite
def ledgers(draw, last=199):
    starts = sorted(draw(st.sets(st.integers(0, last // 4), max_size=4)))
    return [LedgerEntry(4 * start, draw(WEIGHTS)) for start in starts]


def ordered(ledger=(), caps=None, stages=STAGES, sizes=SIZES):
    lengths = {plan.seq_len for plan in stages}
    sources = [source_rows(name, rows, seq_len) for name, rows in sizes.items() for seq_len in lengths]
    return SampleOrder(stages, sources, 0, ledger, caps)


def read(order, first=0, count=None):
    samples = order.samples(first, order.num_samples - first if count is None else count)
    return list(zip(samples.source.tolist(), samples.row.tolist(), samples.epoch.tolist(), strict=True))


@given(ledgers())
@settings(max_examples=30, deadline=None)
def test_an_entry_moves_nothing_before_it(ledger):
    orders = [ordered(ledger[:number]) for number in range(len(ledger) + 1)]
    for entry, before, after in zip(ledger, orders, orders[1:], strict=False):
        assert read(before, 0, entry.n_start) == read(after, 0, entry.n_start)


@given(ledgers())
@settings(max_examples=30, deadline=None)
def test_under_a_ledger_every_row_still_comes_once_an_epoch(ledger):
    order = ordered(ledger)
    samples = read(order)
    assert len(set(samples)) == len(samples)
    for source, name in enumerate(order.source_names):
        epochs = [epoch for number, _, epoch in samples if number == source]
        assert epochs == sorted(epochs)
        assert all(epochs.count(epoch) == SIZES[name] for epoch in range(max(epochs, default=0)))


@given(ledgers(), st.integers(0, 319), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_counts_and_any_window_agree_with_the_whole_under_a_ledger(ledger, first, count):
    order = ordered(ledger)
    whole = read(order)
    count = min(count, order.num_samples - first)
    assert read(ordered(ledger), first, count) == whole[first : first + count]
    counted = np.bincount([source for source, _, _ in whole[:first]], minlength=3)
    assert order.counts(first).tolist() == counted.tolist()


@given(ledgers())
@settings(max_examples=30, deadline=None)
def test_the_error_stays_within_the_bound_of_the_present_segment(ledger):
    order = ordered(ledger)
    for n in range(0, 201, 4):
        assert np.abs(order.counts(n) - order.planned_samples(n)).max() <= order.error_bound(0) + 1e-9


def test_a_hundred_changes_leave_no_more_error_than_one():
    generator = np.random.default_rng(1)
    rates, targets = [Fraction(1)] * 3, np.zeros(3)
    schedules = []
    for start in range(0, 10_000, 100):
        shares = generator.dirichlet(np.ones(3) * 5).tolist()
        schedules.append((start, ([0.0], [shares])))
        targets += 100 * np.array(shares)
    counts = StageCounts(10_000, schedules, rates)
    assert np.abs(counts.counts(10_000) - targets).max() < 1
    # without giving back what is owed, errors of the segments add up
    apart = sum(Quotas([0, 10_000], [row, row]).counts(100) for _, (_, (row,)) in schedules)
    assert np.abs(apart - targets).max() > 1


@given(st.data(), st.integers(1, 6), st.integers(2, 400))
@settings(max_examples=60, deadline=None)
def test_no_source_gives_more_than_the_bound_that_spares_the_search_for_its_cap(data, num_sources, num_samples):
    shares = st.lists(st.floats(0.01, 1), min_size=num_sources, max_size=num_sources)
    tables = st.lists(shares, min_size=1, max_size=3).map(
        lambda rows: ([at / len(rows) for at in range(len(rows))], rows)
    )
    starts = [0, *sorted(data.draw(st.sets(st.integers(1, num_samples - 1), max_size=3)))]
    rates = [Fraction(data.draw(st.integers(1, 9)), 7) for _ in range(num_sources)]
    counts = StageCounts(num_samples, [(start, data.draw(tables)) for start in starts], rates)
    assert (counts.counts(num_samples) <= counts.at_most()).all()


def test_a_stage_without_changes_counts_as_its_quotas():
    counts = StageCounts(1000, [(0, ([0.0, 0.5], [[0.7, 0.3], [0.2, 0.8]]))], [Fraction(1), Fraction(2)])
    quotas = Quotas([0, 500, 1000], [[0.7, 0.6], [0.2, 1.6], [0.2, 1.6]])
    assert [counts.counts(n).tolist() for n in range(0, 1001, 50)] == [
        quotas.counts(n).tolist() for n in range(0, 1001, 50)
    ]


def test_weights_of_an_entry_rule_until_the_next_one_and_the_end_of_the_stage():
    order = ordered([LedgerEntry(40, {"a": 1}), LedgerEntry(80, {"b": 1, "c": 1})])
    assert (order.counts(80) - order.counts(40)).tolist() == [40, 0, 0]
    assert np.abs(order.counts(200) - order.counts(80) - [0, 60, 60]).max() <= 1
    assert (order.counts(320) - order.counts(200)).tolist() == [60, 0, 60]


def test_a_schedule_as_weights_goes_on_with_the_stage_progress():
    order = ordered([LedgerEntry(100, {"a": [[0, 1], [1, 0]], "b": [[0, 0], [1, 1]]})])
    # at progress 0.5 the shares are even, so a has 3/8 of the second half and b 5/8... of 100 samples: 25 and 75
    assert np.abs(order.counts(200) - order.counts(100) - [25, 75, 0]).max() <= 1


def test_the_state_keeps_the_ledger_and_a_ledger_that_lost_or_changed_an_entry_is_refused():
    ledger = [LedgerEntry(40, {"a": 1, "c": 1}, "because", {"evaluation": 3}), LedgerEntry(120, {"b": 1})]
    state, record = (json.loads(json.dumps(value)) for value in (ordered(ledger).state(80), ordered(ledger).identity))
    assert ordered(ledger).check(state) == 80
    assert ordered([*ledger, LedgerEntry(160, {"a": 1})]).check(state) == 80
    with pytest.raises(UserError, match=r"ledger entry at sample 120 is missing; restore the run's ledger.jsonl"):
        ordered(ledger[:1]).check(state, record)
    with pytest.raises(UserError, match="ledger entry 1 was"):
        ordered([LedgerEntry(40, {"a": 2, "c": 1}), ledger[1]]).check(state, record)
    for changed in (ledger[:1], [LedgerEntry(40, {"a": 2, "c": 1}), ledger[1]]):
        with pytest.raises(UserError, match=r"^the first 2 ledger entries are not those"):
            ordered(changed).check(state)
    late = json.loads(json.dumps(ordered(ledger[:1]).state(160)))
    with pytest.raises(UserError, match="at sample 120 is new, but the run has already gone to sample 160"):
        ordered(ledger).check(late)
    assert ordered(ledger).fingerprint != ordered(ledger[:1]).fingerprint


@pytest.mark.parametrize(
    ("ledger", "named"),
    [
        ([LedgerEntry(42, {"a": 1})], "no step boundary of stage 'main'"),
        ([LedgerEntry(320, {"a": 1})], "must rise within 0 to 319"),
        ([LedgerEntry(40, {"a": 1}), LedgerEntry(40, {"b": 1})], "must rise"),
        ([LedgerEntry(240, {"b": 1})], "source 'b' is not in stage 'late'"),
    ],
)
def test_a_wrong_entry_is_refused(ledger, named):
    with pytest.raises(UserError, match=named):
        ordered(ledger)


def test_a_ledger_file_comes_back_and_a_damaged_one_is_refused(tmp_path):
    entries = [LedgerEntry(40, {"a": 1, "b": [[0, 1], [1, 2]]}, "rise", {"bpb": 1.5})]
    path = tmp_path / "ledger.jsonl"
    assert read_ledger(path) == []
    write_ledger(path, entries)
    assert read_ledger(path) == entries
    path.write_text('{"n_start": 4}\n')
    with pytest.raises(UserError, match=r"line 1 is no ledger entry .*restore the file"):
        read_ledger(path)


@given(
    st.dictionaries(st.sampled_from("ab"), st.floats(0.2, 3), min_size=1),
    st.sampled_from(["spill", "renormalise"]),
    ledgers(),
)
@settings(max_examples=40, deadline=None)
def test_no_source_is_read_beyond_its_cap_and_all_before_is_as_without(limits, policy, ledger):
    caps = {name: Cap(limit, policy, "c" if policy == "spill" else None) for name, limit in limits.items()}
    ledger = [LedgerEntry(entry.n_start, {**entry.weights, "c": 1.0}) for entry in ledger]
    order, free = ordered(ledger, caps), ordered(ledger)
    counts = order.counts(order.num_samples)
    for name, cap in caps.items():
        assert Fraction(int(counts[order.source_names.index(name)]), SIZES[name]) <= Fraction(cap.max_epochs)
    first = min((bound.n for bound in order.capped), default=320)
    assert read(order, 0, first) == read(free, 0, first)
    for bound in order.capped:  # each binds no sooner than it must
        source = order.source_names.index(bound.source)
        assert order.counts(bound.n)[source] == int(Fraction(caps[bound.source].max_epochs) * SIZES[bound.source])


def test_where_a_cap_of_policy_error_binds_is_said_before_the_run():
    with pytest.raises(UserError) as caught:
        ordered(caps={"a": Cap(1.0), "c": Cap(0.5)})
    text = str(caught.value)
    assert "source 'a' reaches its max_epochs of 1 at sample" in text
    assert "source 'c' reaches its max_epochs of 0.5 at sample" in text
    assert "the plan reads it 2." in text
    assert "stage 'late', progress" in text
    assert "raise data.sources.a.max_epochs" in text


def test_a_spilled_share_goes_to_the_named_source_and_from_there_to_its_own():
    plan = [stage(200, {"a": 2, "b": 1, "c": 1, "d": 0})]
    sizes = {"a": 40, "b": 90, "c": 1000, "d": 1000}
    caps = {"a": Cap(1.0, "spill", "b"), "b": Cap(1.0, "spill", "d")}
    order = ordered(caps=caps, stages=plan, sizes=sizes)
    assert [(bound.source, bound.n) for bound in order.capped] == [("a", 80), ("b", 174)]
    assert order.counts(200).tolist() == [40, 90, 50, 20]


def test_renormalising_keeps_the_ratio_of_the_others():
    plan = [stage(200, {"a": 2, "b": 1, "c": 1})]
    order = ordered(caps={"a": Cap(1.0, "renormalise")}, stages=plan, sizes={"a": 40, "b": 500, "c": 500})
    assert order.counts(200).tolist() == [40, 80, 80]


def test_a_plan_whose_sources_are_all_at_their_caps_is_refused():
    caps = {name: Cap(0.5, "renormalise") for name in SIZES}
    with pytest.raises(UserError, match=r"every source with a share has reached its max_epochs"):
        ordered(caps=caps)


def test_a_cap_that_has_not_acted_yet_may_be_changed_and_one_that_has_may_not():
    caps = {"a": Cap(1.0, "spill", "c")}
    order = ordered(caps=caps)
    at = order.capped[0].n
    early, late = (json.loads(json.dumps(order.state(n))) for n in (at, at + 20))
    assert ordered(caps={"a": Cap(1.5, "spill", "c")}).check(early) == at
    assert ordered(caps=caps).check(late) == at + 20
    with pytest.raises(UserError, match=rf"data.sources.a.max_epochs: the source was capped at sample {at} \(1 epochs"):
        ordered(caps={"a": Cap(1.5, "spill", "c")}).check(late)


def test_epochs_of_all_sequence_lengths_count_together():
    plan = [stage(40, {"a": 1, "b": 1}), stage(40, {"a": 1, "b": 1}, name="long", seq_len=16)]
    sources = [{8: (20, 160), 16: (10, 160)}, {8: (900, 7200), 16: (900, 14400)}]
    rows = [SourceRows(name, name, table) for name, table in zip("ab", sources, strict=True)]
    order = SampleOrder(plan, rows, 0, caps={"a": Cap(1.5, "renormalise")})
    assert order.epochs(80)["a"] == {8: 1.0, 16: 0.5}


def test_more_than_four_epochs_are_warned_of_with_the_reason():
    order = order_of([stage(200, {"a": 1, "b": 1})], {"a": 25, "b": 20})
    (warning,) = order.warnings()
    assert warning.startswith("source 'b' is read 5.00 times")
    assert "2305.16264" in warning
