"""Promises of the take-down list at a start or a resume: one entry for what is new, for good, and nothing unsaid."""

import json
from functools import partial
from types import SimpleNamespace

import pytest

from cpt_dist.config import StageConfig
from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.packing import document_pieces
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.errors import UserError
from cpt_dist.run_directory import RunDirectory
from cpt_dist.training.run import Run
from cpt_dist.training.take_down import found_together, take_down
from tests.helpers.corpora import corpus_config

TEXTS = {name: [f"{name} text number {i}" for i in range(60)] for name in ("law", "news")}
UNKNOWN = bytes(16)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("take_down")
    config = corpus_config(folder, TEXTS)
    prepare(config)
    config.stages = [StageConfig(tokens="5120", seq_len=64, batch_tokens="256", mixture={"law": 0.6, "news": 0.4})]
    return config, [Source.open(folder / "shards" / name) for name in TEXTS]


@pytest.fixture
def start(prepared, tmp_path):
    """Start or resume at a sample with a list of ids; gives the run."""
    config, sources = prepared
    config.run_dir, config.data.take_down = str(tmp_path), str(tmp_path / "list.txt")

    def started(position, ids):
        (tmp_path / "list.txt").write_text("".join(f"{one.hex()}\n" for one in ids))
        run = SimpleNamespace(config=config, sources=sources, position=position, step=position // 4)
        run.directory, run.order = RunDirectory(tmp_path), sample_order(config, sources)
        run.world = SimpleNamespace(is_first=True, rank=0, size=1, gather=lambda value: [value])
        take_down(run)
        return run

    return started


def test_what_is_new_on_the_list_becomes_an_entry_at_the_position(start, prepared, tmp_path, capsys):
    law, news = ([one.tobytes() for one in source.doc_ids(0)] for source in prepared[1])
    held_out = [bytes.fromhex(next(iter(read_held_out(prepared[1][0].folder))).id)]
    write_ledger(tmp_path / "ledger.jsonl", [LedgerEntry(40, {"law": 1.0})])
    assert start(8, law[:2]).order.take_downs[0].n_start == 8
    assert len(start(12, law[:2]).order.take_downs) == 1
    capsys.readouterr()
    run = start(16, [*law[:3], *news[:4], *held_out, UNKNOWN])
    said = capsys.readouterr().out
    weights, first, second = read_ledger(tmp_path / "ledger.jsonl")
    assert run.order.entries == [weights, first, second]
    assert (first.documents, first.n_start) == (set(law[:2]), 8)
    assert (second.documents, second.n_start) == ({law[2], *news[:4], *held_out, UNKNOWN}, 16)
    assert second.evidence["documents"] == {"law": 1, "news": 4}
    assert "take-down: 5 document(s) are skipped from sample 16 on" in said
    assert (
        f"1 document(s) are held out: never trained on, but still scored by evaluations (first: {held_out[0].hex()}"
        in said
    )
    assert f"1 of 7 document(s) are in no source of this run (first: {UNKNOWN.hex()})" in said
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["take_down"] for record in records] == [2, 7]


def test_a_shorter_list_or_none_brings_nothing_back(start, prepared, tmp_path, capsys):
    ids = [one.tobytes() for one in prepared[1][0].doc_ids(0)][:3]
    start(8, ids)
    capsys.readouterr()
    assert start(12, ids[:1]).order.take_downs == read_ledger(tmp_path / "ledger.jsonl")
    assert "2 document(s) that were taken down are no longer on the list; they stay out" in capsys.readouterr().out
    run = start(12, [])
    run.config.data.take_down = None
    take_down(run)
    assert [entry.documents for entry in run.order.take_downs] == [set(ids)]


def test_a_run_that_went_back_behind_a_take_down_takes_down_from_there(start, prepared):
    ids = [one.tobytes() for one in prepared[1][0].doc_ids(0)][:3]
    start(20, ids)
    run = start(8, ids)
    assert [entry.n_start for entry in run.order.take_downs] == [20, 8]


def test_a_wrong_list_is_refused_and_nothing_is_written(start, tmp_path):
    run = start(0, [])
    (tmp_path / "list.txt").write_text("no id\n")
    with pytest.raises(UserError, match="line 1: 'no id' is no document id"):
        take_down(run)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_every_rank_searches_a_share_and_hears_what_the_others_found_or_could_not_read():
    made, shares = [], []

    def search(number):
        made.append(number)
        if number == 7:
            raise UserError("shard 7 is damaged")
        return {bytes([number])}

    def on_three_ranks(numbers):
        shares.clear()
        searches = [("law" if number < 4 else "news", partial(search, number)) for number in numbers]
        for rank in range(3):  # what each contributes, then what the last hears
            world = SimpleNamespace(rank=rank, size=3, gather=lambda value: shares.append(value) or shares)
            found = found_together(world, searches)
        return found

    assert on_three_ranks(range(7)) == {"law": {b"\0", b"\1", b"\2", b"\3"}, "news": {b"\4", b"\5", b"\6"}}
    assert sorted(made) == list(range(7))
    with pytest.raises(UserError, match="shard 7 is damaged"):
        on_three_ranks(range(8))


def test_the_probe_is_the_first_row_without_what_is_taken_down_by_now(start, prepared):
    config, sources = prepared
    run = start(0, [])
    whole = Run.probe_ids(run).tolist()
    sample = run.order.samples(0, 1)
    source = sources[int(sample.source[0])]
    row = make_plan(source, 64).row(int(sample.row[0]))
    first, bounds = document_pieces(source.doc_offsets(row.shard), *row.spans[0])
    run = start(4, [source.doc_ids(row.shard)[first + 1].tobytes()])
    begin, end = (bounds[1:3] - bounds[0]).tolist()
    assert 0 < begin < end < len(whole)
    assert Run.probe_ids(run).tolist() == (whole[:begin] + whole[end:])[: config.checkpoint.probe_tokens]
    with pytest.raises(UserError, match="every document of the run's first stage was taken down"):
        Run.probe_ids(start(12, [one.tobytes() for source in sources for one in source.doc_ids(0)]))
