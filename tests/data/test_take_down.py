"""Promises of take-downs: the list is read strictly, the entry is kept whole, the order stays, old ledgers are read."""

import json

import pytest

from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.lookup import find_document, readings_of_place, readings_of_steps
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.take_down import TakeDown, read_list
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource, source_rows, stage

A, B = bytes([10] * 16), bytes(range(16))


def ordered(ledger):
    return SampleOrder([stage(80, {"a": 1, "b": 1})], [source_rows(name, 30) for name in "ab"], 0, ledger)


def test_a_list_has_an_id_a_line_comments_and_blank_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"# asked for on 3 May\n\n{A.hex().upper()}  # letter 12\n{B.hex()}\r\n{B.hex()}\n")
    assert read_list(path) == {A, B}


def test_every_line_that_is_no_id_is_named(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"{A.hex()}\nabc\n{A.hex()}0\n" + "x\n" * 7)
    with pytest.raises(UserError) as caught:
        read_list(path)
    assert caught.value.problems[0].endswith("line 2: 'abc' is no document id; it has 32 hexadecimal characters")
    assert "line 3" in caught.value.problems[1]
    assert caught.value.problems[-1].endswith("4 more lines are no ids")
    with pytest.raises(UserError, match=r"data.take_down: .*missing.txt' cannot be read"):
        read_list(tmp_path / "missing.txt")


def test_a_ledger_of_both_kinds_comes_back_and_one_without_kinds_is_of_weights(tmp_path):
    entries = [TakeDown(8, frozenset([A, B]), "asked for", {"unknown": 0}), LedgerEntry(16, {"a": 1.0}, "rise")]
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, entries)
    assert read_ledger(path) == entries
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["kind"], first["documents"]) == ("take_down", 2)
    assert (tmp_path / first["file"]).read_text() == f"{B.hex()}\n{A.hex()}\n"
    path.write_text('{"n_start": 16, "weights": {"a": 1.0}, "reason": "rise", "evidence": {}}\n')
    assert read_ledger(path) == entries[1:]
    path.write_text('{"kind": "future", "n_start": 16}\n')
    with pytest.raises(UserError, match=r"line 1 is no ledger entry .*knows no entries of kind 'future'"):
        read_ledger(path)


def test_an_altered_or_missing_file_of_documents_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, [TakeDown(8, frozenset([A, B]))])
    (file,) = (tmp_path / "take_down").iterdir()
    file.write_text(f"{A.hex()}\n")
    with pytest.raises(UserError, match=r"has checksum .* but the ledger says .*; restore it from a copy"):
        read_ledger(path)
    file.unlink()
    with pytest.raises(UserError, match=r"none \(no such file\)"):
        read_ledger(path)


def test_a_take_down_moves_no_sample_but_belongs_to_the_run():
    without, with_one = ordered([]), ordered([TakeDown(40, frozenset([A]))])
    pairs = [without.samples(0, 80), with_one.samples(0, 80)]
    assert all((getattr(pairs[0], name) == getattr(pairs[1], name)).all() for name in ("source", "row", "epoch"))
    assert without.fingerprint != with_one.fingerprint


def test_a_checkpoint_keeps_its_take_downs_and_takes_new_ones_from_its_sample_on():
    first = TakeDown(40, frozenset([A]))
    state = json.loads(json.dumps(ordered([first]).state(60)))
    assert ordered([first]).check(state) == 60
    assert ordered([first, TakeDown(60, frozenset([B]))]).check(state) == 60
    with pytest.raises(UserError, match=r"take-down at sample 40 is missing; restore the run's ledger.jsonl"):
        ordered([]).check(state)
    with pytest.raises(UserError, match="take-down 1 was"):
        ordered([TakeDown(40, frozenset([A, B]))]).check(state)
    with pytest.raises(UserError, match="take-down at sample 56 is new, but the run has already gone to sample 60"):
        ordered([first, TakeDown(56, frozenset([B]))]).check(state)
    with pytest.raises(UserError, match="take-down at sample 84: it lies outside 0 to 80"):
        ordered([TakeDown(84, frozenset([B]))])


def test_look_ups_end_where_a_document_was_taken_down():
    source = MemorySource("a", [[20, 9, 4, 30]], first_document=1)
    plan = [stage(40, {"a": 1})]
    orders = [
        SampleOrder(plan, [source_rows("a", 8)], 0, ledger)
        for ledger in ([], [TakeDown(12, frozenset([bytes([2] * 16)]))])
    ]
    (place,) = find_document([source], bytes([2] * 16))
    before, after = (readings_of_place(order, [source], place) for order in orders)
    assert after == [reading for reading in before if reading.sample < 12]
    assert 0 < len(after) < len(before)
    forward, cut = (list(readings_of_steps(order, [source], 1, 10)) for order in orders)
    assert cut == [reading for reading in forward if reading.place != place or reading.sample < 12]
    assert len(cut) < len(forward)
