"""Promises of the preview of a run: its numbers are those of training, with or without shards and a model."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import field, make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cpt_dist.config import AlternativeConfig, CurriculumConfig, RopeConfig, ScheduleConfig, StageConfig
from cpt_dist.data.prepare import prepare
from cpt_dist.distillation_config import DistillationConfig
from cpt_dist.errors import UserError
from cpt_dist.gate_config import GateConfig
from cpt_dist.model.rope import dimension_ranges, inverse_frequencies, stage_ropes
from cpt_dist.planning.data_plan import plan_data
from cpt_dist.planning.run_plan import plan_run
from cpt_dist.planning.run_report import render_html, tables, write_run_plan
from tests.helpers import tiny_run
from tests.helpers.corpora import corpus_config, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {name: [f"{name} text {i} " + "y" * (i % 40) for i in range(n)] for name, n in (("law", 150), ("news", 60))}
MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
}


@pytest.fixture
def config(tmp_path):
    config = corpus_config(tmp_path, TEXTS, shard_tokens="1000")
    config.run_dir, config.model.path = str(tmp_path / "run"), str(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL))
    config.plan.out = str(tmp_path / "plan")
    config.stages = [
        StageConfig(
            name="domain",
            tokens="10k",
            seq_len=64,
            batch_tokens="256",
            mixture={"law": [[0.0, 0.2], [1.0, 0.8]], "news": [[0.0, 0.8], [1.0, 0.2]]},
            schedule=ScheduleConfig("wsd", peak_lr=1e-3, warmup=0.1),
        ),
        StageConfig(
            name="long",
            tokens="4096",
            seq_len=512,
            batch_tokens="1024",
            mixture={"law": 1.0},
            schedule=ScheduleConfig("linear_to_zero", peak_lr=None),
            rope=RopeConfig("yarn"),
        ),
    ]
    config.checkpoint.every_steps, config.evaluation.every_steps = 14, 20
    return config


def test_stages_are_laid_end_to_end_in_whole_steps(config):
    plan = plan_run(config)
    domain, long = plan["stages"]
    assert (domain["steps"], domain["tokens"], domain["tokens_asked"]) == (40, 10240, 10000)
    assert (long["first_step"], long["last_step"], long["batch_samples"]) == (41, 44, 2)
    assert domain["checkpoints"] + long["checkpoints"] == [14, 28, 40, 42, 44]
    assert domain["evaluations"] + long["evaluations"] == [0, 20, 40, 44]
    assert domain["ranks"] is None


def test_the_cost_of_a_teacher_is_that_of_the_tokens_that_it_reads(config, tmp_path):
    assert plan_run(config)["distillation"] is None
    config.distillation, config.data.sources["news"].role = DistillationConfig(), "replay"
    share = 0.5 * 10240 / (10240 + 4096)  # the first stage goes from 80% to 20%, the second reads none
    cost = plan_run(config)["distillation"]
    assert cost["share_of_tokens"] == pytest.approx(share, abs=0.01)
    assert cost["extra_flops"] == pytest.approx(cost["share_of_tokens"] / 3)
    for name, words in (("model", 30), ("teacher", 60)):
        (tmp_path / name).mkdir(exist_ok=True)
        save_file({"a": np.zeros((words, 4), np.float16)}, tmp_path / name / "model.safetensors", {"format": "pt"})
    config.distillation = DistillationConfig(tokens="all", teacher=str(tmp_path / "teacher"))
    plan = plan_run(config)
    assert plan["distillation"]["extra_flops"] == pytest.approx(2 / 3)
    assert plan["distillation"]["teacher_weights"] == 240
    assert "+66.7%" in render_html(plan)


def test_a_stopped_plan_has_the_checkpoints_and_evaluations_of_this_job_alone(config):
    config.stop_after_stage, config.evaluation.during_training = "domain", False
    plan = plan_run(config)
    assert [stage["checkpoints"] for stage in plan["stages"]] == [[14, 28, 40], []]
    assert [stage["evaluations"] for stage in plan["stages"]] == [[], []]
    assert "stage 'long' is left to a later job (stop_after_stage=domain)" in plan["warnings"]


def test_the_planned_world_shares_a_batch_out(config):
    config.plan.world_size, config.engine.micro_batch = 2, 1
    ranks = [stage["ranks"] for stage in plan_run(config)["stages"]]
    assert [(one["rows_of_a_rank"], one["accumulation"]) for one in ranks] == [(2, 2), (1, 1)]
    config.plan.world_size = 3
    with pytest.raises(UserError, match="2 rows of 512, too few for 3 ranks"):
        plan_run(config)


def test_the_learning_rate_is_given_at_its_first_highest_and_last_step(config):
    domain, long = (stage["schedule"] for stage in plan_run(config)["stages"])
    assert (domain["peak"], domain["peak_step"]) == (1e-3, 4)
    assert domain["first"] == pytest.approx(1e-3 / 4)
    assert domain["last"] == pytest.approx(1e-4)
    assert long["first"] == pytest.approx(1e-4 * 3 / 4)
    assert long["last"] == 0.0


def test_a_peak_between_the_shown_steps_of_a_long_stage_is_found(config):
    config.stages[0].tokens = "3M"
    config.stages[0].schedule = ScheduleConfig("cosine_restarts", peak_lr=1e-3, warmup=0.001, cycles=3)
    assert plan_run(config)["stages"][0]["schedule"]["peak"] == pytest.approx(1e-3, rel=1e-3)


def test_rope_says_what_each_dimension_meets_at_the_stages_length(config):
    domain, long = (stage["rope"] for stage in plan_run(config)["stages"])
    assert (domain["type"], domain["theta"], domain["pairs"]["extrapolated"]) == ("default", 10000.0, 0)
    assert (long["type"], long["factor"], long["original"], long["max_positions"]) == ("yarn", 4.0, 128, 512)
    rope = stage_ropes(MODEL, config.stages)[1]
    base, scaled = (inverse_frequencies(p, 16) for p in ({"rope_type": "default", "rope_theta": 1e4}, rope.parameters))
    expected = dimension_ranges(base, scaled, 128, 512)
    assert [(one["first"], one["last"], one["kind"]) for one in long["ranges"]] == [
        (one.first, one.last, one.kind) for one in expected
    ]
    config.stages[1].rope = RopeConfig("abf", theta=10000.0)
    plan = plan_run(config)
    extrapolated = plan["stages"][1]["rope"]["pairs"]["extrapolated"]
    assert extrapolated > 0
    assert any(line.startswith(f"stage 'long': {extrapolated} of 8 pairs") for line in plan["warnings"])


def test_every_way_that_a_fork_leads_to_is_listed_with_its_own_learning_rates(config):
    gate = GateConfig({"held_out": {"macro": 0.1}}, on_fail="fork", fork_to="short")
    down, hold = ScheduleConfig("linear_to_zero", peak_lr=None), ScheduleConfig("constant", peak_lr=None, warmup=0.0)
    other = StageConfig("other", "2048", 64, "256", {"law": 1.0}, schedule=hold)
    end = replace(other, name="end", rope=RopeConfig("abf"), schedule=down)
    config.stages[1].gate = gate
    config.alternatives = {"short": AlternativeConfig([other, end])}
    plan = plan_run(config)
    (way,) = plan["alternatives"]
    assert way["way"] == "after a fork at stage 'long'"
    first, end = way["stages"]
    assert (first["name"], first["first_step"], first["last_step"], end["last_step"]) == ("other", 41, 48, 56)
    assert first["schedule"]["first"] == pytest.approx(1e-4)  # where the stage before the fork ends
    assert end["schedule"]["first"] == pytest.approx(1e-4 * 7 / 8)
    assert (first["rope"]["type"], end["rope"]["type"]) == ("default", "abf")
    table = next(table for table in tables(plan) if table.title == "where a gate forks the plan")
    assert [row[:2] for row in table.rows] == [[way["way"], "other"], [way["way"], "end"]]
    config.plan.what = "schedule"
    assert [len(one["stages"]) for one in plan_run(config)["alternatives"]] == [2]
    config.alternatives["short"].stages[0].tokens, config.alternatives["short"].stages[0].epochs = None, 1
    plan = plan_run(config)
    assert plan["alternatives"][0]["stages"] is None
    assert plan["missing"][0].startswith("after a fork at stage 'long': ")


def test_without_shards_and_model_it_says_what_is_missing_and_shows_the_rest(config):
    config.model.path = "nowhere"
    plan = plan_run(config)
    assert [line.partition(":")[0] for line in plan["missing"]] == ["data", "data", "model"]
    assert [stage["rope"] for stage in plan["stages"]] == [None, None]
    law = [point["shares"]["law"] for point in plan["stages"][0]["timeline"]]
    assert law == pytest.approx(np.linspace(0.23, 0.77, 10), abs=0.005)
    assert plan["total"]["tokens"] is None
    write_run_plan(plan, config.plan.out)
    assert "if every row is full" in render_html(plan)


def test_a_curriculum_over_strata_without_shards_is_missing_and_no_error(config):
    config.stages[1].mixture = {"law": 1.0, "news": 1.0}
    config.stages[1].curriculum = CurriculumConfig("difficulty", buckets=["law/low", "law/high"])
    plan = plan_run(config)
    assert any(line.startswith("mixture: stage 'long': its curriculum moves strata") for line in plan["missing"])
    assert [stage["timeline"] for stage in plan["stages"]] == [None, None]
    write_run_plan(plan, config.plan.out)


def test_with_shards_tokens_and_epochs_are_those_of_the_data_plan(config):
    prepare(config)
    plan = plan_run(config)
    data = plan_data(config)
    assert plan["missing"] == []
    assert plan["total"]["tokens"] == data["total"]["tokens"]
    assert [stage["timeline"] for stage in plan["stages"]] == [stage["timeline"] for stage in data["stages"]]
    epochs = next(table for table in tables(plan) if table.title == "what is read of each source")
    assert epochs.rows[0][5] == f"{data['sources']['law']['epochs']:.3g}"


def test_fields_that_stages_come_to_have_show_up_by_their_names(config):
    wider = make_dataclass("Wider", [("trainable", str, field(default="all"))], bases=(StageConfig,))
    values = {name: getattr(config.stages[1], name) for name in vars(config.stages[1])}
    config.stages[1] = wider(**values | {"context_parallel": 2})
    config.plan.world_size = 4
    plan = plan_run(config)
    assert [stage["settings"] for stage in plan["stages"]] == [{}, {"context_parallel": 2}]
    assert plan["stages"][1]["ranks"]["readers"] == 2
    assert any(table.columns == ["stage", "context_parallel"] for table in tables(plan))
    assert "context_parallel" in render_html(plan)
    config.plan.world_size = 3
    with pytest.raises(UserError, match="3 is no multiple of the context_parallel 2"):
        plan_run(config)


@pytest.mark.parametrize(("what", "titles"), [("schedule", ["stages", "learning rate"]), ("rope", ["RoPE"])])
def test_a_part_is_shown_alone(config, what, titles):
    config.plan.what = what
    plan = plan_run(config)
    assert [table.title.partition(":")[0] for table in tables(plan)][: len(titles)] == titles
    assert plan["missing"] == []
    assert (plan["stages"][1]["rope"] is None) == (what == "schedule")
    write_run_plan(plan, config.plan.out)


def test_rope_alone_needs_the_model(config):
    config.plan.what, config.model.path = "rope", ""
    with pytest.raises(UserError, match="RoPE is unknown"):
        plan_run(config)


def test_the_page_is_one_file_and_fetches_nothing(config, tmp_path):
    config.stages[0].name = "<script>alert(1)</script>"
    paths = write_run_plan(plan_run(config), tmp_path / "out")
    page = paths[2].read_text()
    assert "<script" not in page
    assert page.count("<svg ") == 4
    fetched = re.findall(r"""(?:src|href|action|data)\s*=\s*["'](?!#)([^"']*)|url\((?!#)|@import|<link""", page)
    assert fetched == []
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    assert json.loads(paths[0].read_text())["stages"][0]["name"] == "<script>alert(1)</script>"


def test_the_figure_shows_each_source_in_its_share(config, tmp_path):
    plan = plan_run(config)
    pixels = np.asarray(Image.open(write_run_plan(plan, tmp_path / "out")[1]).convert("RGB")).astype(int)
    top = pixels[: len(pixels) // 3]
    areas = [(np.abs(top - np.array(colour)).sum(axis=2) < 12).sum() for colour in ((59, 130, 196), (224, 138, 30))]
    assert areas[0] / areas[1] == pytest.approx((10240 * 0.5 + 4096) / (10240 * 0.5), rel=0.15)


@pytest.mark.e2e
def test_the_plan_is_what_a_run_then_does(tmp_path):
    experiment = tiny_run.build(tmp_path)
    first = experiment["stages"][0] | {"tokens": "1536"}
    second = first | {"name": "long", "seq_len": 256, "batch_tokens": "512", "tokens": "1024", "rope": {"type": "yarn"}}
    experiment["stages"] = [first, second | {"schedule": {"name": "linear_to_zero"}}]
    experiment["checkpoint"] = {"every_steps": 4, "keep_last": 0}
    experiment["evaluation"] = {"max_tokens": "200", "seq_len": 64, "every_steps": 3}
    configs = tiny_run.write_experiment(tmp_path, copy.deepcopy(experiment))
    options = [f"--config-dir={configs}", "experiment=tiny"]
    words = [sys.executable, str(ROOT / "launch/plan.py"), *options, "world_size=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "run/plan/plan.json").read_text())
    tiny_run.launch("python", 1, "train.py", *options)
    steps = tiny_run.read_metrics(tmp_path / "run")
    assert len(steps) == plan["total"]["steps"] == 8
    planned = dict(map(tuple, (point for stage in plan["stages"] for point in stage["schedule"]["learning_rates"])))
    assert {record["step"]: record["lr"] for record in steps} == planned
    assert [record["stage"] for record in steps] == [s["name"] for s in plan["stages"] for _ in range(s["steps"])]
    for kind in ("checkpoint", "evaluation"):
        made = [record["step"] for record in tiny_run.read_metrics(tmp_path / "run", kind)]
        assert made == [step for stage in plan["stages"] for step in stage[f"{kind}s"]]
    accounts = tiny_run.read_metrics(tmp_path / "run", "checkpoint")[-1]["accounts"]
    assert sum(one["planned_tokens"] for one in accounts.values()) == pytest.approx(plan["total"]["tokens"], rel=0.02)
    read = {name: sum(s["sources"][name]["samples"] for s in plan["stages"]) for name in accounts}
    assert {name: one["samples"] for name, one in accounts.items()} == read
    parameters = json.loads((tmp_path / "run/checkpoints/step-00000008/trainer.json").read_text())["rope"]
    assert parameters["rope_parameters"] == plan["stages"][1]["rope"]["parameters"]


DOCUMENTED = [
    line.split()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/plan.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.e2e
@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_a_command_of_the_page_makes_its_three_files_without_torch(words, tmp_path):
    arguments = [word for word in words[2:] if not word.startswith("out=")]
    script = [sys.executable, "-X", "importtime", words[1], *arguments, f"plan.out={tmp_path}/plan"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == ["plan.html", "plan.json", "plan.png"]


def test_the_plan_says_what_documents_are_behind_long_rows(config):
    config.data.sources["law"].raw = [
        str(write_jsonl(Path(config.plan.out) / "law.jsonl", [*TEXTS["law"], "z " * 700]))
    ]
    prepare(config)
    upsampled = {"share": 1.0, "length_upsampling": {"min_tokens": 512, "factor": 3}}
    config.stages[1].mixture = {"law": upsampled}
    plan = plan_run(config)
    short, long = (stage["sources"]["law"] for stage in plan["stages"])
    assert short["strata"]["law/from_512"]["joined_tokens"] == 0
    assert (long["strata"]["law/under_512"]["joined_tokens"], long["strata"]["law/from_512"]["joined_tokens"]) == (
        long["strata"]["law/under_512"]["tokens"],
        0,
    )
    shares = [stage["long_data"] for stage in plan["data"]["stages"]]
    assert [one["trained_positions"] for one in shares] == [128, 128]
    assert shares[1]["joined_share"] == pytest.approx(long["joined_tokens"] / long["tokens"])
    assert shares[1]["short_share"] == pytest.approx(long["short_tokens"] / long["tokens"])
    rows = next(table.rows for table in tables(plan) if table.title.startswith("documents behind"))
    assert ["law/from_512"] in [row[1:2] for row in rows]
    config.stages[1].mixture = {"law": 1.0}
    config.long_data.min_short_share = 1.0
    assert any("asks for 100%" in line for line in plan_run(config)["warnings"])
    config.stages[1].mixture = {"news": upsampled}
    warnings = plan_run(config)["warnings"]
    assert any(line.startswith("stage 'long': 100.0% of its tokens are joined") for line in warnings)
    assert any("length_upsampling of source 'news' changes nothing" in line for line in warnings)
