"""Promises of growth: old shards and old order stay, the new generation enters by the ledger, a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_dist.config import StageConfig
from cpt_dist.data.caps import Cap
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.prepare import prepare
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.data.views import held_out_of, views_of
from cpt_dist.errors import UserError
from cpt_dist.strata_config import StrataConfig
from cpt_dist.training.growth import new_generations, sources_and_order
from tests.helpers.corpora import corpus_config, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
OLD = [f"document number {index} " + "x" * (index % 23) for index in range(60)]
NEW = [f"later document {index} " + "y" * (index % 31) for index in range(40)]
NEWS = [f"news {index}" for index in range(30)]


def start(folder, **data):
    config = corpus_config(folder, {"law": OLD, "news": NEWS}, shard_tokens="200", **data)
    prepare(config)
    config.run_dir = str(folder / "run")
    config.stages = [
        StageConfig(name="one", tokens="6400", seq_len=16, batch_tokens="64", mixture={"law": 0.5, "news": 0.5}),
        StageConfig(name="two", tokens="3200", seq_len=16, batch_tokens="64", mixture={"law": 0.75, "news": 0.25}),
    ]
    return config


def grow(config, texts=(*OLD[:5], *NEW, NEWS[0]), name="law"):
    """Append raw text to a source and prepare again."""
    raw = Path(config.data.sources[name].raw[0])
    write_jsonl(raw, [json.loads(line)["text"] for line in raw.read_text().splitlines()] + list(texts))
    config.data.sources[name].grow = True
    return prepare(config)


def files(config, name="law"):
    folder = Path(config.data.shards) / name
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


def views(config):
    return views_of([Source.open(Path(config.data.shards) / name) for name in ("law", "news")], config.data.sources)


def saved(order, n):
    state = {"order": order.state(n), "sources": order.source_names}
    return json.loads(json.dumps(state)), json.loads(json.dumps(order.identity))


def rows_of(order, name):
    """(row, epoch) of a view in the order in which they are read."""
    samples = order.samples(0, order.num_samples)
    mine = samples.source == order.source_names.index(name)
    return list(zip(samples.row[mine].tolist(), samples.epoch[mine].tolist(), strict=True))


def test_changed_raw_text_is_refused_with_the_fix_unless_the_source_may_grow(tmp_path):
    config = start(tmp_path)
    raw = Path(config.data.sources["law"].raw[0])
    write_jsonl(raw, [*OLD, *NEW])
    with pytest.raises(UserError, match=r"pipeline.inputs.*or set data.sources.law.grow=true to append what is new"):
        prepare(config)


def test_growth_appends_and_leaves_every_old_file_as_it_is(tmp_path):
    config = start(tmp_path)
    before, old = files(config), Source.open(tmp_path / "shards/law")
    law, news = grow(config)
    after = files(config)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: content for name, content in before.items() if name != "manifest.json"
    }
    assert law.grew
    assert news.was_complete
    generation = law.manifest["generations"][1]
    assert generation["counts"]["dropped"] == {"duplicate": len(OLD) + 6}
    assert generation["counts"]["kept"] + generation["counts"]["held_out"] == len(NEW)
    assert law.manifest["counts"]["read"] == 2 * len(OLD) + len(NEW) + 6
    first, second = (view for view in views(config) if view.name.startswith("law"))
    assert (first.name, second.name) == ("law", "law@1")
    assert first.fingerprint == old.fingerprint
    assert first.manifest == old.manifest
    assert first.num_documents + second.num_documents == law.manifest["documents"]
    assert second.tokens(0, 0, 5).size == 5
    held_out = [{one.id for one in read_held_out(tmp_path / "shards/law")}]
    held_out += [{one.id for one in held_out_of(views(config), "law", but=but)} for but in ([], [("law", 1)])]
    assert held_out[0] == held_out[1] > held_out[2]


def test_a_second_growth_reads_new_files_only_and_a_third_finds_nothing(tmp_path):
    config = start(tmp_path)
    grow(config)
    fingerprints = [view.fingerprint for view in views(config)]
    extra = write_jsonl(tmp_path / "raw/extra.jsonl", [f"third lot {i}" for i in range(20)])
    config.data.sources["law"].raw.append(str(extra))
    law, _ = prepare(config)
    assert law.manifest["generations"][2]["counts"]["read"] == 20
    assert [view.name for view in views(config)] == ["law", "law@1", "law@2", "news"]
    assert [v.fingerprint for v in views(config) if v.name != "law@2"] == fingerprints
    content = files(config)
    assert all(done.was_complete for done in prepare(config))
    write_jsonl(extra, [f"third lot {i}" for i in range(5)])
    assert all(done.was_complete for done in prepare(config))
    assert files(config) == content


DRIVER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cpt_dist.data import prepare as module
from tests.data.test_generations import grow, start
config = start(Path(sys.argv[2]))
calls = 0
original = os.replace
def replace(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
    original(*arguments)
os.replace = replace
grow(config)
"""


def test_a_kill_in_mid_growth_leaves_the_old_source_whole_and_a_rerun_completes_it(tmp_path):
    unkilled = start(tmp_path)
    old_files = set(files(unkilled))
    grow(unkilled)
    expected, count = files(unkilled), len(files(unkilled)) - len(old_files)
    for number in (1, count, count + 1):  # the first file, the last one, the manifest
        for name in ("shards", "raw"):
            (tmp_path / name).rename(tmp_path / f"{name}-before-{number}")
        killed = subprocess.run(
            [sys.executable, "-c", DRIVER, str(ROOT), str(tmp_path), str(number)], cwd=ROOT, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        config = corpus_config(tmp_path, {}, shard_tokens="200")
        config.data.sources = unkilled.data.sources
        assert Source.open(tmp_path / "shards/law", verify="open").num_documents < 60
        prepare(config)
        assert files(config) == expected


def test_a_run_goes_on_with_its_old_rows_in_their_order_and_the_new_generation_enters_at_the_resume(tmp_path):
    config = start(tmp_path)
    plain = sample_order(config, views(config))
    state, identity = saved(plain, 160)
    grow(config)
    sources, entry = new_generations(config, views(config), state)
    assert (entry.n_start, entry.generations) == (160, {"law": [1]})
    order = sample_order(config, sources, [entry])
    assert order.check(state["order"], identity) == order.check(state["order"]) == 160
    before, after = (one.samples(0, 160) for one in (plain, order))
    names = [[one.source_names[s] for s in part.source] for one, part in ((plain, before), (order, after))]
    assert names[0] == names[1]
    assert (before.row.tolist(), before.epoch.tolist()) == (after.row.tolist(), after.epoch.tolist())
    for name in ("law", "news"):
        never, grown = rows_of(plain, name), rows_of(order, name)
        shorter = min(len(never), len(grown))
        assert never[:shorter] == grown[:shorter]
        assert shorter > 0
    tokens = {view.name: view.num_tokens for view in sources}
    share = tokens["law@1"] / (tokens["law"] + tokens["law@1"])
    assert order.shares(159)["law@1"] == 0
    assert order.shares(160)["law@1"] == pytest.approx(0.5 * share)
    assert order.shares(399)["law@1"] == pytest.approx(0.5 * share)
    assert order.shares(400)["law@1"] == pytest.approx(0.75 * share)
    assert [order.source_shares(n)["law"] for n in (0, 200, 500)] == pytest.approx([0.5, 0.5, 0.75])


def test_a_fresh_run_reads_both_generations_from_the_start(tmp_path):
    config = start(tmp_path)
    grow(config)
    sources, order, entry = sources_and_order(config, views(config), None)
    assert entry is None
    tokens = {view.name: view.num_tokens for view in sources}
    assert order.shares(0)["law@1"] == pytest.approx(0.5 * tokens["law@1"] / (tokens["law"] + tokens["law@1"]))
    state, identity = saved(order, 64)
    assert new_generations(config, views(config), state)[1] is None
    assert order.check(state["order"], identity) == 64


def test_growth_waits_for_an_entry_that_is_to_act_and_does_nothing_to_a_finished_run(tmp_path):
    config = start(tmp_path)
    plain = sample_order(config, views(config))
    pending = LedgerEntry(200, {"law": 0.2, "news": 0.8})
    run = Path(config.run_dir)
    run.mkdir()
    (run / "ledger.jsonl").write_text(json.dumps({"n_start": 200, "weights": pending.weights}) + "\n")
    grow(config)
    _, entry = new_generations(config, views(config), saved(plain, 160)[0])
    assert entry.n_start == 204
    order = sample_order(config, views(config), [pending, entry])
    assert order.source_shares(204)["law"] == pytest.approx(0.2)
    assert 0 < order.shares(204)["law@1"] < order.shares(203)["law"]
    sources, entry = new_generations(config, views(config), saved(plain, plain.num_samples)[0])
    assert entry is None
    assert [source.name for source in sources] == ["law", "news"]


def test_strata_of_a_grown_source_keep_their_edges_and_each_generation_has_its_own(tmp_path):
    config = start(tmp_path)
    config.data.sources["law"].strata = StrataConfig(quantiles=2)
    before = views(config)
    grow(config)
    after = views(config)
    assert [view.name for view in after] == ["law/low", "law/high", "law@1/low", "law@1/high", "news"]
    assert {v.name: v.fingerprint for v in before}.items() <= {v.name: v.fingerprint for v in after}.items()
    state, _ = saved(sample_order(config, before), 100)
    sources, entry = new_generations(config, after, state)
    order = sample_order(config, sources, [entry])
    assert order.check(state["order"]) == 100
    shares, tokens = order.shares(100), {view.name: view.num_tokens for view in after}
    for name in ("law/low", "law@1/high"):
        law = sum(number for view, number in tokens.items() if view != "news")
        assert shares[name] == pytest.approx(0.5 * tokens[name] / law)


def test_a_changed_old_generation_is_refused_by_name(tmp_path):
    config = start(tmp_path)
    state, identity = saved(sample_order(config, views(config)), 100)
    other = start(tmp_path / "other")
    grow(other)
    sources, entry = new_generations(other, views(other), state)
    order = SampleOrder.from_sources(config.stages, sources, 0, [entry])
    with pytest.raises(UserError, match=r"source 'law' was \w+ and is \w+: its shards were made again"):
        order.check(state["order"], identity)


def test_a_cap_holds_for_a_new_generation_by_itself(tmp_path):
    config = start(tmp_path)
    grow(config)
    caps = {"law": Cap(1.0, "renormalise")}
    order = SampleOrder.from_sources(config.stages, views(config), 0, (), caps)
    epochs = order.epochs(order.num_samples)
    assert all(epochs[name][16] <= 1 for name in ("law", "law@1"))
