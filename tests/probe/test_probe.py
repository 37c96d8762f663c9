"""A probe on tiny models: a planted gain is found, results are kept, and only what belongs together is compared."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cpt_dist.cli import composed
from cpt_dist.config import parse_quantity
from cpt_dist.data.shards import Source
from cpt_dist.errors import UserError
from cpt_dist.evaluation.claims import answers, decide
from cpt_dist.evaluation.probe_claims import claims_of_probe, probe_claims, read_probes
from cpt_dist.evaluation.suites.text_model import load_tokenizer
from cpt_dist.probe import arms
from cpt_dist.probe.arms import arms_of, made
from cpt_dist.probe.compare import probe
from cpt_dist.probe.inputs import check_probe_inputs
from cpt_dist.probe.report import write_probe
from cpt_dist.probe.spec import read_task
from cpt_dist.probe_config import ProbeConfig, probe_length_problems
from tests.probe.small import ANSWERS, base_model, configured, write_task


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """base: random. adapted: the same, having learned the task. The probe's own training is too short to learn it."""
    folder = write_task(tmp_path_factory.mktemp("probe"))
    base = base_model(folder / "base")
    teaching = configured(folder, base, seeds=[7], keep_models=True, out=str(folder / "teaching"))
    arm = arms_of(teaching)[0]
    taught = made(arm, read_task(teaching), teaching, lambda line: None)
    adapted = arm.results / "seed-7" / "model"
    config = configured(folder, base, adapted, learning_rate=1e-5, epochs=0.4)
    lines = []
    record = write_probe(probe(config, lines.append), config.probe.out)
    return folder, config, record, taught, lines


def test_a_planted_gain_is_found_over_items_and_seeds(planted):
    _, _, record, taught, _ = planted
    assert taught.seeds[7].values.mean() == 1.0 > taught.before.values.mean()
    (found,) = record["comparisons"]
    assert (found["against"], found["outcome"]) == ("base", "improved")
    assert found["gain"]["low"] > 0.2
    assert [one["seed"] for one in found["seeds"]] == [0, 1, 2]
    assert all(one["only_adapted"] > one["only_other"] and one["p_value"] < 0.001 for one in found["seeds"])
    assert any("the recipe taught it nothing" in line for line in record["notes"])
    assert record["arms"][0]["seeds"][0]["training"]["steps"] == 2
    assert record["spec_hash"] == read_task(planted[1]).hash


def test_only_completions_are_predicted(planted):
    folder, *_ = planted
    (source,) = (folder / "teaching" / "shards").glob("*/probe")
    shards, tokenizer = Source.open(source), load_tokenizer(str(folder / "base"))
    spans = {tokenizer.decode(shards.tokens(0, start, stop)) for start, stop in shards.loss_spans(0).tolist()}
    assert spans == {f" {answer}{tokenizer.eos_token}" for answer in ANSWERS.values()}


def test_the_page_fetches_nothing_and_its_numbers_are_those_of_the_record(planted):
    _, config, record, *_ = planted
    out = Path(config.probe.out)
    assert record == json.loads((out / "probe.json").read_text())
    for name in ("probe.html", "probe.md"):
        page = (out / name).read_text()
        assert not re.search(r"<script|(?:src|href)=\"(?!#)|url\((?!#)", page)
        assert f"{record['comparisons'][0]['gain']['value']:+.4f}" in page
        assert record["spec_hash"] in page


def test_what_is_there_is_not_made_again_and_what_is_missing_is(planted, monkeypatch):
    folder, config, record, *_ = planted
    asked = []
    seed_1 = folder / "probe" / "arms" / "adapted" / "seed-1.json"
    kept = seed_1.read_text()
    before = probe(config).arms[1].seeds[1]
    seed_1.unlink()
    monkeypatch.setattr(arms, "_tuned", lambda arm, seed, *_: asked.append((arm.name, seed)) or before)
    monkeypatch.setattr(arms, "_score", None)
    assert write_probe(probe(config), config.probe.out) == record
    assert asked == [("adapted", 1)]
    assert seed_1.read_text() == kept


def test_an_arm_of_an_earlier_probe_stands_for_its_model_and_equal_arms_are_no_gain(planted, tmp_path):
    folder, _, record, *_ = planted
    earlier = folder / "probe" / "arms" / "base"
    settings = {"learning_rate": 1e-5, "epochs": 0.4, "out": str(tmp_path)}
    found = write_probe(probe(configured(folder, earlier, earlier, **settings)), tmp_path)
    (comparison,) = found["comparisons"]
    assert (comparison["gain"]["value"], comparison["outcome"]) == (0.0, "undecided")
    assert found["scores"]["base"] == record["scores"]["base"]

    with pytest.raises(UserError, match=r"base: .* another spec, recipe.epochs: 9.0 here, 0.4 there; compare results"):
        probe(configured(folder, earlier, earlier, **settings | {"epochs": 9.0}))
    with pytest.raises(UserError, match=r"has no seed-3.json; give the model's folder"):
        probe(configured(folder, earlier, earlier, **settings | {"seeds": [0, 1, 3]}))


def test_results_of_another_model_in_the_folder_are_refused(planted):
    folder, config, *_ = planted
    swapped = configured(folder, config.evaluate.adapted, config.model.path, learning_rate=1e-5, epochs=0.4)
    with pytest.raises(UserError, match=r"before.json' is the result of another model than"):
        probe(swapped)


def test_the_verdict_reads_a_probe_as_a_goal_or_as_what_must_be_kept(planted):
    _, config, record, *_ = planted
    config.verdict.probe = config.probe.out
    config.verdict.goals = ["gold"]
    folders = {"base": config.model.path, "adapted": config.evaluate.adapted}
    (claim,) = probe_claims(config, folders).claims
    assert (claim.name, claim.kind, claim.threshold) == ("gold (probe)", "goal", 0.0)
    assert decide(answers([claim], 0.95, 500, 0)).word == "helped"
    missing = claims_of_probe(record, config, with_control=True)[1]
    assert (missing.kind, missing.gains) == ("control", None)

    config.verdict.goals = []
    same = {"base": config.evaluate.adapted, "adapted": config.evaluate.adapted}
    (kept,) = probe_claims(config, same | folders).claims
    assert (kept.kind, kept.threshold) == ("retention", -0.03)
    with pytest.raises(UserError, match=r"adapted of the probe 'gold' was .*, whose files are others"):
        probe_claims(config, folders | {"adapted": config.model.path})


def test_the_defaults_fit_each_other_and_folders_are_asked_for_by_name():
    settings = ProbeConfig()
    assert probe_length_problems(settings, parse_quantity(settings.batch_tokens, "probe.batch_tokens")) == []
    with pytest.raises(UserError) as caught:
        check_probe_inputs(composed(["probe.data=x"]))
    assert caught.value.problems == [f"{key} is missing; give it: {key}=FOLDER" for key in ("base", "adapted", "out")]


def test_every_mistake_is_named_at_once(planted, tmp_path):
    folder, *_ = planted
    config = configured(folder, folder / "none", folder / "gone", gold=str(folder / "no.yaml"), seq_len=300)
    with pytest.raises(UserError) as caught:
        check_probe_inputs(config)
    found = [problem.split(":")[0] for problem in caught.value.problems]
    assert found == [f"suite '{folder / 'no.yaml'}'", "base", "adapted", "probe.batch_tokens"]
    (tmp_path / "probe.json").write_text("{}")
    with pytest.raises(UserError, match=r"there is no file 'nowhere'.*|no result of launch/probe.py") as caught:
        read_probes(["nowhere", str(tmp_path)])
    assert len(caught.value.problems) == 2


@pytest.mark.distributed
def test_two_processes_train_what_one_does(planted):
    folder, config, _, taught, _ = planted
    both = configured(folder, config.model.path, seeds=[7], processes=2, out=str(folder / "both"))
    both.engine.micro_batch = 4
    found = made(arms_of(both)[0], read_task(both), both, lambda line: None).seeds[7]
    assert found.training["steps"] == taught.seeds[7].training["steps"]
    assert found.training["last_loss"] == pytest.approx(taught.seeds[7].training["last_loss"], rel=1e-3)
    shutil.rmtree(folder / "both")
