"""launch/diagnose.py and what it calls, on a tiny model and small texts whose truth is known."""

import json
import math
import re

import pytest
import torch

from cpt_dist.config import CptConfig
from cpt_dist.diagnosis.diagnose import budget_tokens, diagnose
from cpt_dist.diagnosis.report import build_record, render, write_report
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import score_documents
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.model.load import load_model
from tests.helpers.models import tiny_llama
from tests.helpers.tiny_run import launch, write_corpus, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, domain text of 50 words, general text of 50 others, and more text of the general kind."""
    path = tmp_path_factory.mktemp("diagnose")
    tiny_llama(path / "model")
    write_tokenizer(path / "model")
    write_corpus(path / "domain.jsonl", 0, 400, seed=1)
    write_corpus(path / "general.jsonl", 400, 400, seed=2)
    write_corpus(path / "twin.jsonl", 400, 400, seed=3)
    return path


def configured(folder, domain="domain", general="general", **changes):
    config = CptConfig(run_dir="run")
    config.model.path = str(folder / "model")
    config.evaluation.seq_len, config.evaluation.bootstrap = 64, 500
    settings = {
        "domain": str(folder / f"{domain}.jsonl"),
        "general": str(folder / f"{general}.jsonl") if general else [],
        "held_out_tokens": "1500",
        "pilot_share": 1.0,
        "pilot_learning_rate": 1e-2,
        "thresholds": {"floor_tokens": 1000, "ample_tokens": 5000},
    }
    for name, value in (settings | changes).items():
        setattr(config.diagnose, name, value)
    return config


@pytest.fixture(scope="module")
def found(folder):
    config = configured(folder)
    return diagnose(config), config


def test_the_measures_are_those_of_the_texts(found, folder):
    tokens = {
        name: sum(len(json.loads(line)["text"].split()) for line in (folder / f"{name}.jsonl").open())
        for name in ("domain", "general")
    }
    facts = found[0].facts
    assert (facts.domain_tokens, facts.general_tokens) == (tokens["domain"], tokens["general"])
    assert facts.relative_overlap == 0.0
    assert facts.fertility_ratio == pytest.approx(1.0, abs=0.01)
    assert facts.context_tokens == 128
    assert facts.instruct_signs == ()


def test_bits_per_byte_are_those_of_the_evaluation(found, folder):
    side = found[0].sides["domain"]
    encoder = DocumentEncoder(folder / "model")
    score = packed_scorer(load_model(found[1].model).eval())
    scores = score_documents(side.held_out, encoder, score, window=64, batch_tokens=2000)
    assert found[0].measures.scored["domain"].bits_per_byte.value == pytest.approx(scores.bits_per_byte, rel=1e-6)


def test_the_pilot_reads_nothing_that_is_held_out(found):
    for side in found[0].sides.values():
        assert not {text.id for text in side.held_out} & {one.id for one in side.training}
        assert len(side.held_out) + len(side.training) == len(side.sample.documents)


def test_what_can_be_learned_is_learned_and_speaks_for_training(found):
    learned = found[0].measures.pilot.learnability
    assert learned.low > 0.2
    floor = math.log2(50) / 5  # fifty words of four letters and a blank, all alike
    assert floor < found[0].measures.pilot.domain_after < found[0].measures.scored["domain"].bits_per_byte.value
    assert "the pilot learned" in found[0].ranking.held
    assert found[0].ranking.options[0].option == "CPT"


def test_text_of_the_same_kind_shows_no_gap(folder):
    same = diagnose(configured(folder, "twin", pilot=False))
    assert same.measures.gap.low < 0 < same.measures.gap.high
    assert same.facts.relative_overlap == pytest.approx(1.0, abs=0.02)
    assert "the domain is harder" not in same.ranking.held
    assert same.measures.pilot_reason == "diagnose.pilot is false"


def test_without_general_text_nothing_is_compared_and_replay_is_missed(folder):
    alone = diagnose(configured(folder, general=None, pilot=False))
    assert alone.measures.gap is None
    assert alone.facts.relative_overlap is None
    assert any("No general text was given" in one for one in alone.warnings)
    assert {"gap", "relative_overlap", "fertility_ratio"} <= set(alone.ranking.unknown)
    record = build_record(alone, configured(folder, general=None))
    assert (record["gap"]["status"], record["overlap"]["status"], record["pilot"]["status"]) == ("not run",) * 3
    assert "there is no general text" in render(record, "diagnosis.md")


def test_a_pilot_of_one_percent_of_little_text_is_not_run(folder):
    assert "too few for ten steps" in diagnose(configured(folder, pilot_share=0.01)).measures.pilot_reason


def test_the_budget_in_hours_becomes_tokens(folder):
    config = configured(folder, gpu_hours=2.0, tflops_per_gpu=100.0)
    assert budget_tokens(config, 6e9) == 2 * 3600 * 100 * 10**12 // (6 * 10**9)
    assert budget_tokens(configured(folder, budget_tokens="5B"), 6e9) == 5 * 10**9
    assert budget_tokens(configured(folder), 6e9) is None


def test_weights_that_give_no_number_are_refused(folder, monkeypatch):
    def broken(config):
        model = load_model(config)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model

    monkeypatch.setattr("cpt_dist.diagnosis.measure.load_model", broken)
    with pytest.raises(UserError, match="its loss on domain text is no number"):
        diagnose(configured(folder, pilot=False))


def test_the_three_files_hold_the_same_numbers_and_fetch_nothing(found, tmp_path):
    config = found[1]
    config.diagnose.out = str(tmp_path / "out")
    record, _ = write_report(*found)
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text()) == json.loads(json.dumps(record))
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    text = (tmp_path / "out" / "diagnosis.md").read_text()
    assert not re.search(r"(src|href)\s*=|@import|url\(|<script", page)
    for number in (
        f"{record['gap']['value']:.4g}",
        f"{record['sides']['domain']['bits_per_byte']['value']:.4g}",
        f"{record['sides']['general']['tokens']['value']:,.0f}",
        f"{record['pilot']['learnability']['value']:.1%}",
    ):
        assert number in page
        assert number in text
    assert all(reason["source"] for option in record["options"] for reason in option["reasons"])
    assert "{{" not in page + text
    assert "set by the user" in text


@pytest.mark.e2e
def test_the_script_prints_the_ranking_and_writes_the_files(folder):
    words = [f"{name}={folder / f'{name}.jsonl'}" for name in ("domain", "general")]
    out = folder / "out"
    options = ["pilot=false", "held_out_tokens=1500", "evaluation.seq_len=64", f"out={out}", "fresh_days=1"]
    done = launch("python", 1, "diagnose.py", f"model={folder / 'model'}", *words, *options)
    record = json.loads((out / "diagnosis.json").read_text())
    assert record["sentence"] in done.stdout
    assert [one["option"] for one in record["options"]][:2] == ["RAG", "prompt"]
    assert "no training keeps up" in done.stdout


@pytest.mark.e2e
def test_mistakes_are_named_at_once_with_exit_code_2(folder):
    done = launch("python", 1, "diagnose.py", "model=nowhere", check=False)
    assert done.returncode == 2
    assert "error: model.path: there is no folder 'nowhere'" in done.stderr
    assert "error: domain is missing" in done.stderr
