"""Promises of the dry run: its numbers are those that training reads, from manifests alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpt_dist.config import ScheduleConfig, StageConfig
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source
from cpt_dist.errors import UserError
from cpt_dist.planning.data_plan import plan_data
from cpt_dist.planning.data_report import write_data_plan
from cpt_dist.schedules import learning_rate
from tests.helpers.corpora import corpus_config
from tests.helpers.tokenizer import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {name: [f"{name} text {i} " + "y" * (i % 40) for i in range(n)] for name, n in (("law", 150), ("news", 60))}
RAMP = {"law": [[0.0, 0.2], [1.0, 0.8]], "news": [[0.0, 0.8], [1.0, 0.2]]}


@pytest.fixture
def config(tmp_path):
    config = corpus_config(tmp_path, TEXTS, shard_tokens="1000")
    prepare(config)
    config.run_dir, config.model.path = str(tmp_path / "run"), ""
    config.schedule = ScheduleConfig(warmup=0.1)
    config.stages = [
        StageConfig(name="ramp", tokens="10240", seq_len=64, batch_tokens="256", mixture=dict(RAMP)),
        StageConfig(name="long", tokens="4096", seq_len=128, batch_tokens="256", mixture={"law": 1.0}),
    ]
    return config


def test_the_plan_counts_what_the_order_reads(config):
    plan = plan_data(config)
    sources = [Source.open(Path(config.data.shards) / name) for name in config.data.sources]
    order = SampleOrder.from_sources(config.stages, sources, config.seed)
    for index, stage in enumerate(plan["stages"]):
        start, end = order.stage_starts[index : index + 2]
        read = order.samples(start, end - start)
        for name, record in stage["sources"].items():
            mine = read.source == order.source_names.index(name)
            assert record["samples"] == mine.sum()
            # The stages differ in seq_len, so each has rows of its own.
            assert record["unseen_share"] == pytest.approx(1 - len(set(read.row[mine].tolist())) / record["rows"])
    assert plan["stages"][1]["sources"]["law"]["unseen_share"] > 0
    assert plan["total"]["steps"] == 40 + 16
    assert plan["sources"]["law"]["held_out_documents"] == sources[0].manifest["counts"]["held_out"]
    assert plan["stages"][0]["sources"]["law"]["share_asked"] == pytest.approx(0.5, abs=0.01)


def test_the_plan_says_how_full_each_stages_own_packing_makes_the_rows(config):
    config.stages[0].packing = "best_fit"
    ramp, long = plan_data(config)["stages"]
    assert (ramp["packing"], long["packing"]) == ("best_fit", "concat")
    law = Source.open(Path(config.data.shards) / "law")
    rows = make_plan(law, 64, "best_fit")
    assert ramp["sources"]["law"]["rows"] == rows.num_rows
    assert ramp["sources"]["law"]["utilisation"] == law.num_tokens / (64 * rows.num_rows)
    fits = [np.diff(law.doc_offsets(shard).astype(int)).max() <= 64 for shard in range(len(law.shard_tokens))]
    assert all(fits)
    assert ramp["sources"]["law"]["cuts_at_most"] == 0


def test_the_timeline_follows_mixture_and_learning_rate(config):
    first, second = (stage["timeline"] for stage in plan_data(config)["stages"])
    law = [point["shares"]["law"] for point in first]
    assert law == sorted(law)
    assert law[0] == pytest.approx(0.23, abs=0.01)
    assert law[-1] == pytest.approx(0.77, abs=0.01)
    assert [point["steps"] for point in (*first, *second)][0::10] == [[1, 4], [41, 41]]
    assert second[-1]["steps"][1] == 56
    assert [p["learning_rate"] for p in first] == [learning_rate(config.schedule, p["progress"][1]) for p in first]


def test_it_needs_manifests_and_no_shard(config):
    before = plan_data(config)
    for path in Path(config.data.shards).glob("*/*"):
        if path.name != "manifest.json":
            path.unlink()
    assert plan_data(config) == before


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda c: setattr(c.stages[0], "tokens", "200k"), r"source 'news' is read \d+\.\d times .*arXiv 2305\.16264"),
        (lambda c: c.stages[0].mixture.pop("news"), "source 'news' is never read: no stage's mixture names it"),
        (lambda c: c.stages[0].mixture.update(news=0.0), "source 'news' is never read: its shares give it no sample"),
        (lambda c: setattr(c.schedule, "warmup", 0.01), r"stage 'ramp' has 40 steps, so its warm-up is 0\.4 of a step"),
        (lambda c: setattr(c.schedule, "warmup", 1.0), "stage 'ramp' is over before its warm-up is"),
        (lambda c: setattr(c.stages[1], "seq_len", 4096), "source 'law' has rows of .* as its shards are small"),
    ],
)
def test_a_doubtful_plan_is_warned_of(config, change, warning):
    assert not any(re.match(warning, line) for line in plan_data(config)["warnings"])
    change(config)
    for stage in config.stages:
        stage.batch_tokens = str(max(256, stage.seq_len))
    assert any(re.match(warning, line) for line in plan_data(config)["warnings"])


def test_every_missing_source_and_another_tokenizer_are_refused_at_once(config, tmp_path):
    (Path(config.data.shards) / "law/manifest.json").unlink()
    config.data.tokenizer = str(tiny_tokenizer(tmp_path / "other", vocab_size=300))
    with pytest.raises(UserError) as raised:
        plan_data(config)
    assert [problem[:16] for problem in raised.value.problems] == ["source 'law': '/", "source 'news': i"]


def test_the_figure_shows_each_source_in_its_share(config, tmp_path):
    plan = plan_data(config)
    paths = write_data_plan(plan, tmp_path / "out")
    assert json.loads(paths[0].read_text()) == plan
    pixels = np.asarray(Image.open(paths[1]).convert("RGB")).astype(int)
    areas = [(np.abs(pixels - np.array(colour)).sum(axis=2) < 12).sum() for colour in ((59, 130, 196), (224, 138, 30))]
    assert areas[0] / areas[1] == pytest.approx((40 * 0.5 + 16) / (40 * 0.5), rel=0.15)


@pytest.mark.e2e
def test_the_command_takes_what_and_out(tiny, tmp_path):
    words = [sys.executable, str(ROOT / "launch/plan.py"), *tiny.arguments("what=data", f"out={tmp_path}/plan")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 steps" in done.stdout
    assert json.loads((tmp_path / "plan/plan.json").read_text())["total"]["steps"] == 20
    assert (tmp_path / "plan/mixture.png").stat().st_size > 1000
    words = [sys.executable, str(ROOT / "launch/plan.py"), *tiny.arguments("what=dat")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: plan.what: 'dat' is unknown; did you mean 'data'? (one of all, data, schedule, rope)\n",
    )
