import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.lookup import readings_of_steps
from cpt_dist.data.skip import WINDOW, Skip, SkippedSamples
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource, order_of, stage

STAGES, ROWS = [stage(40, {"law": 0.7, "news": 0.3})], {"law": 30, "news": 30}


def batch():
    return order_of(STAGES, ROWS).stages[0].batch_samples


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20))))
def test_the_union_of_skips_holds_what_any_of_them_holds(spans):
    skipped = SkippedSamples([Skip(start, start + length) for start, length in spans])
    inside = {n for start, length in spans for n in range(start, start + length)}
    assert {n for n in range(80) if n in skipped} == inside
    assert {n for start, stop in skipped.before(30) for n in range(start, stop)} == {n for n in inside if n < 30}


def test_no_other_sample_moves_and_the_counts_are_those_of_what_is_read():
    size = batch()
    whole, cut = order_of(STAGES, ROWS), order_of(STAGES, ROWS, ledger=[Skip(2 * size, 4 * size)])
    assert all(whole.sample(n) == cut.sample(n) for n in range(40))
    read = [whole.sample(n)[0] for n in range(6 * size) if not 2 * size <= n < 4 * size]
    assert cut.read_counts(6 * size).tolist() == [read.count("law"), read.count("news")]


def test_the_file_keeps_entries_of_both_kinds(tmp_path):
    entries = [
        LedgerEntry(8, {"law": 1.0}, "more law"),
        Skip(4, 8, reason="the loss is nan", evidence={"loss": "nan"}),
        Skip(0, 8, WINDOW),
    ]
    write_ledger(tmp_path / "ledger.jsonl", entries)
    assert read_ledger(tmp_path / "ledger.jsonl") == entries


def test_a_skip_that_cuts_a_step_or_leaves_the_plan_is_refused():
    size = batch()
    for skip in (Skip(1, size), Skip(0, size + 1), Skip(0, 41), Skip(size, size)):
        if size == 1 and skip.n_stop <= 40 and skip.n_start < skip.n_stop:
            continue
        with pytest.raises(UserError, match="must hold whole steps"):
            order_of(STAGES, ROWS, ledger=[skip])


def test_a_checkpoint_knows_the_skips_before_it_and_takes_later_ones():
    size = batch()
    before, after = Skip(0, size), Skip(3 * size, 4 * size)
    state = order_of(STAGES, ROWS, ledger=[before]).state(3 * size)
    assert order_of(STAGES, ROWS, ledger=[before, after]).check(state) == 3 * size
    with pytest.raises(UserError, match="skip at sample 0 is missing"):
        order_of(STAGES, ROWS).check(state)
    with pytest.raises(UserError, match=f"skip at sample {size} is new"):
        order_of(STAGES, ROWS, ledger=[before, Skip(size, 2 * size)]).check(state)


def test_the_ledger_says_that_skipped_steps_read_nothing():
    sources = [MemorySource(name, [[8] * 30]) for name in ("law", "news")]
    size = batch()
    order = order_of(STAGES, ROWS, ledger=[Skip(size, 2 * size)])
    steps = {reading.step for reading in readings_of_steps(order, sources, 1, 3)}
    assert steps == {1, 3}
