"""The first samples of a stage whose shares don't move are the same, however long the stage is."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import order_of, stage

SHARES = st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 10), min_size=1, max_size=5)
ROWS = dict.fromkeys("abcde", 37)


def as_saved(order, n):
    return json.loads(json.dumps(order.state(n))), json.loads(json.dumps(order.identity))


def read(order, n):
    samples = order.samples(0, n)
    return [samples.source.tolist(), samples.row.tolist(), samples.epoch.tolist()]


@settings(max_examples=25, deadline=None)
@example({"a": 1.0, "b": 2.0, "c": 2.0}, {"a": 1.0}, 2, 1, {"a": 1.0, "c": 1.0}, 2)  # a change just before the end
@given(
    mixture=SHARES,
    before=SHARES,
    steps=st.integers(2, 60),
    more=st.integers(1, 200),
    change=st.none() | SHARES,
    last=st.integers(1, 60),
)
def test_a_longer_or_shorter_steady_stage_reads_the_same_samples_so_far(mixture, before, steps, more, change, last):
    n = 12 + 4 * min(last, steps)
    entries = []
    if change is not None and set(change) <= set(mixture) and n > 16:
        entries = [LedgerEntry(16, change)]
    plans = [[stage(12, before, name="before"), stage(4 * length, mixture)] for length in (steps, steps + more)]
    orders = [order_of(plan, ROWS, ledger=entries) for plan in plans]
    for was, now in (orders, orders[::-1]):
        if now.num_samples < n:
            continue
        state, record = as_saved(was, min(n, was.num_samples))
        for kept in (record, None, json.loads(json.dumps(now.identity))):
            assert now.check(state, kept) == n
        assert now.check_past(state, record) == n
        assert read(was, n) == read(now, n)


def test_shares_that_move_hang_on_the_length():
    moving = {"a": [[0, 1.0], [1, 0.0]], "b": 1.0}
    was, now = (order_of([stage(length, moving)], ROWS) for length in (40, 80))
    state, record = as_saved(was, 20)
    for kept in (record, None):
        with pytest.raises(UserError, match="stage 'main'"):
            now.check(state, kept)
    with pytest.raises(UserError, match="fork: stage 'main' length in samples"):
        now.check_past(state, record)
    assert now.check(*as_saved(was, 0)) == 0  # nothing was read of it


def test_an_earlier_stage_keeps_its_length():
    was, now = (order_of([stage(n, {"a": 1.0}, name="one"), stage(40, {"a": 1.0})], ROWS) for n in (40, 80))
    for kept in (as_saved(was, 60)[1], None):
        with pytest.raises(UserError, match="stage 'one'"):
            now.check(as_saved(was, 60)[0], kept)


def test_a_fork_takes_another_future_and_no_other_past():
    was = order_of([stage(40, {"a": 1.0}, name="one"), stage(40, {"b": 1.0}, name="two")], ROWS)
    other = order_of([stage(40, {"a": 1.0}, name="one"), stage(8, {"c": 1.0}, name="three")], ROWS)
    assert other.check_past(*as_saved(was, 40)) == 40
    assert other.check_past(*as_saved(was, 20)) == 20
    with pytest.raises(UserError, match="fork: stage 'two' name was two and is three"):
        other.check_past(*as_saved(was, 44))
    with pytest.raises(UserError, match="stage 'two' name was two"):
        other.check(*as_saved(was, 40))
