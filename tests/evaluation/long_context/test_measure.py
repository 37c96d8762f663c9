"""The whole long-context evaluation: planted models, its report, its command."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.long_context import measure
from cpt_dist.evaluation.long_context.answering import Answer
from cpt_dist.evaluation.long_context.inputs import check_long_context
from cpt_dist.evaluation.long_context.report import build_record, write_report
from cpt_dist.validation import validate
from tests.evaluation.tiny import WORDS, save_model
from tests.helpers.models import tiny_gpt2
from tests.helpers.tiny_run import launch

TASKS = ["niah_single_1", "niah_multikey_1", "passkey"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models_and_documents(tmp_path_factory.mktemp("long"))


def models_and_documents(folder):
    """Two models and ten documents of 500 words in `folder`."""
    save_model(folder / "base")
    save_model(folder / "adapted", seed=1)
    generator = np.random.default_rng(0)
    (folder / "documents").mkdir()
    for number in range(10):
        words = " ".join(WORDS[int(i)] for i in generator.integers(0, len(WORDS), 500))
        (folder / "documents" / f"{number}.txt").write_text(words)
    return folder


@pytest.fixture
def mapping(folder):
    return mapping_of(folder)


def mapping_of(folder):
    """What to measure of the models in `folder`."""
    return {
        "evaluate": {
            "what": "long_context",
            "base": str(folder / "base"),
            "adapted": str(folder / "adapted"),
            "out": str(folder / "out"),
        },
        "evaluation": {
            "max_tokens": "2k",
            "bootstrap": 200,
            "long_context": {
                "documents": [str(folder / "documents")],
                "native_length": 600,
                "lengths": [600, 900],
                "tasks": TASKS,
                "items": 8,
                "short_tokens": 64,
            },
        },
    }


def made(mapping):
    missing = {"run_dir": "", "model": {"path": ""}, "data": {"shards": ""}}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), missing, mapping))


def planted(monkeypatch, forgets_beyond):
    """Models that lose 0.5 nats a token, and every answer, beyond a length of their own (base, adapted)."""

    def load(config, folder, encoder):
        limit = forgets_beyond[folder.rsplit("/", 1)[1]]

        def score(input_ids, labels, position_ids, cu_seqlens):
            noise = (input_ids * 7919 % 13).double() / 100
            return 2.0 - 0.2 * torch.log2(position_ids.clamp(max=limit) + 1.0) + 0.5 * (position_ids >= limit) + noise

        def answer(item):
            knows = item.num_tokens <= limit
            return Answer(item.answers[0] if knows else "", (float(knows), 0.5, 0.0, 0.0))

        return measure.LoadedModel(score, lambda: answer)

    monkeypatch.setattr(measure, "load", load)


def test_planted_models_are_told_apart(mapping, monkeypatch):
    planted(monkeypatch, {"base": 600, "adapted": 900})
    found = measure.evaluate_long_context(made(mapping))
    assert (found.base_curve.rises_from, found.adapted_curve.rises_from) == (512, None)
    assert found.changes[-1].outcome == "improved"
    assert [change.difference.value for change in found.changes[:3]] == [0, 0, 0]
    assert {row.outcome for row in found.tasks if row.length == 900} == {"improved"}
    assert {row.outcome for row in found.tasks if row.length == 600} == {"undecided"}
    assert found.effective_lengths["passkey"]["chosen"] == {"base": 600, "adapted": 900}
    assert found.short[0].outcome == "undecided"


def test_paired_values_give_the_reported_differences(mapping, monkeypatch):
    planted(monkeypatch, {"base": 600, "adapted": 900})
    found = measure.evaluate_long_context(made(mapping))
    pairs = {pair.name: pair for pair in measure.paired_values(found)}
    reported = {f"{row.task}/{row.length}/{row.way}": row.difference.value for row in found.tasks}
    reported |= {f"position/{change.start}-{change.stop}": change.difference.value for change in found.changes}
    reported["short/documents"] = found.short[0].difference.value
    assert pairs.keys() == reported.keys()
    for name, pair in pairs.items():
        difference = (pair.adapted - pair.base).sum() / pair.weights.sum()
        assert difference == pytest.approx(reported[name], abs=1e-12)
        assert len(set(pair.ids)) == len(pair.ids) == len(pair.base)


def test_one_model_alone_is_measured_once(mapping, monkeypatch):
    planted(monkeypatch, {"base": 600})
    loads, load = [], measure.load
    monkeypatch.setattr(measure, "load", lambda *arguments: loads.append(1) or load(*arguments))
    mapping["evaluate"]["adapted"] = mapping["evaluate"]["base"]
    found = measure.evaluate_long_context(made(mapping))
    assert len(loads) == 1
    record = build_record(found)
    assert "one model was measured" in record["notes"][0]
    assert {row["outcome"] for row in record["tasks"]} == {"undecided"}


def test_documents_that_are_too_short_leave_the_positions_unrun(mapping, monkeypatch, tmp_path):
    planted(monkeypatch, {"base": 600, "adapted": 900})
    mapping["evaluation"]["long_context"]["min_document_tokens"] = 50_000
    record = write_report(measure.evaluate_long_context(made(mapping)), tmp_path)
    assert record["positions"]["curves"] == {"base": None, "adapted": None}
    assert "not run, since no document has 50,000 tokens" in " ".join(record["notes"])
    assert "Not run." in (tmp_path / "long_context.md").read_text()


def test_the_three_files_agree(mapping, monkeypatch, tmp_path):
    planted(monkeypatch, {"base": 600, "adapted": 900})
    mapping["evaluation"]["long_context"]["tasks"] = [*TASKS, "cwe"]
    write_report(measure.evaluate_long_context(made(mapping)), tmp_path / "first")
    write_report(measure.evaluate_long_context(made(mapping)), tmp_path / "second")
    files = {path.suffix: path.read_text() for path in (tmp_path / "first").iterdir()}
    assert files == {path.suffix: path.read_text() for path in (tmp_path / "second").iterdir()}
    record = json.loads(files[".json"])
    page = html.unescape(re.sub(r"<svg.*?</svg>", "", files[".html"], flags=re.DOTALL))
    numbers = [f"{bucket['loss']['value']:.4f}" for bucket in record["positions"]["curves"]["base"]["buckets"]]
    numbers += [f"{row['base']['value']:.2f}" for row in record["tasks"] if row["base"]]
    for number in numbers:
        assert number in page
        assert number in files[".md"]
    assert all(sentence in page for sentence in record["sentences"])
    assert "<script" not in files[".html"]


def test_all_that_is_missing_is_named_at_once(mapping):
    mapping["evaluate"] |= {"base": "nobase", "adapted": "none", "out": ""}
    mapping["evaluation"]["long_context"]["documents"] = []
    with pytest.raises(UserError) as caught:
        check_long_context(made(mapping))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "evaluate.out",
        "evaluate.base",
        "evaluate.adapted",
        "evaluation.long_context.documents",
    ]


def test_lengths_follow_from_the_models(mapping, folder, tmp_path):
    adapted = tmp_path / "longer"
    adapted.mkdir()
    for path in (folder / "base").iterdir():
        (adapted / path.name).write_bytes(path.read_bytes())
    raw = json.loads((adapted / "config.json").read_text())
    (adapted / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": 1100}))
    mapping["evaluate"]["adapted"] = str(adapted)
    mapping["evaluation"]["long_context"] |= {"native_length": None, "lengths": [], "short_tokens": None}
    found = check_long_context(made(mapping))
    assert (found.native, found.of_tasks, found.of_positions, found.short) == (256, (256, 512, 1024), 1024, 256)


def test_lengths_beyond_learned_positions_are_refused(mapping, tmp_path):
    mapping["evaluate"]["adapted"] = str(tiny_gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError) as caught:
        check_long_context(made(mapping))
    assert "lengths: 900 is beyond the 128 positions that evaluate.adapted has learned" in caught.value.problems[0]


def test_lengths_without_the_native_one_are_refused(mapping):
    mapping["evaluation"]["long_context"]["native_length"] = 700
    with pytest.raises(UserError, match=r"lengths: \[600, 900\] lack the native length 700"):
        check_long_context(made(mapping))


def test_wrong_values_are_all_named():
    config = CptConfig()
    config.evaluation.long_context = replace(
        config.evaluation.long_context,
        tasks=["niah_singel_1", "vt", "vt"],
        depths=[1.5],
        lengths=[2000, 1000],
        haystack="essays",
        items=0,
    )
    config.evaluate.what = "long"
    with pytest.raises(UserError) as caught:
        validate(config)
    named = [one.split(":")[0] for one in caught.value.problems if "long_context" in one or "evaluate" in one]
    fields = ["tasks", "tasks", "haystack", "depths", "lengths", "items"]
    assert named == ["evaluate.what", *(f"evaluation.long_context.{field}" for field in fields)]
    assert "did you mean" in " ".join(caught.value.problems)


@pytest.mark.e2e
def test_the_command_measures_real_models_and_writes_the_report(mapping, folder):
    settings = [
        f"evaluation.long_context.{key}={json.dumps(value).replace(' ', '')}"
        for key, value in mapping["evaluation"]["long_context"].items()
        if key != "documents"
    ]
    words = [f"{key}={mapping['evaluate'][key]}" for key in ("what", "base", "adapted", "out")]
    documents = f"documents=[{folder / 'documents'}]"
    launch("python", 1, "evaluate.py", *words, documents, *settings, "evaluation.max_tokens=2k")
    record = json.loads((folder / "out" / "long_context.json").read_text())
    assert len(record["positions"]["documents"]) == 10
    assert {row["way"] for row in record["tasks"]} == {"written", "chosen"}
