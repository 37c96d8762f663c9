"""launch/evaluate.py and what it calls, on a tiny model and prepared sources."""

import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.evaluate import evaluate
from cpt_dist.evaluation.inputs import check_inputs
from cpt_dist.evaluation.report import write_report
from tests.helpers.models import tiny_llama
from tests.helpers.tiny_run import build, launch, write_experiment, write_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with two prepared sources, a base and another model, and the configuration as a mapping."""
    folder = tmp_path_factory.mktemp("evaluate")
    mapping = build(folder)
    tiny_llama(folder / "adapted", seed=7)
    write_tokenizer(folder / "adapted")
    mapping["evaluate"] |= {"adapted": str(folder / "adapted"), "out": str(folder / "report")}
    return folder, mapping


@pytest.fixture
def config(prepared):
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), prepared[1]))


@pytest.mark.e2e
def test_the_script_prints_and_writes_the_numbers_that_the_library_computes(prepared, config):
    folder, mapping = prepared
    done = launch("python", 1, "evaluate.py", f"--config-dir={write_experiment(folder, mapping)}", "experiment=tiny")
    written = {path.name: path.read_text() for path in (folder / "report").iterdir()}
    write_report(evaluate(config), folder / "again")
    assert written == {path.name: path.read_text() for path in (folder / "again").iterdir()}
    for source in json.loads(written["report.json"])["sources"]:
        assert f"{source['base']['value']:.4f}" in done.stdout


@pytest.mark.e2e
def test_missing_folders_are_all_named_at_once_with_exit_code_2(prepared):
    folder, mapping = prepared
    missing = mapping | {"evaluate": {"base": "nobase", "adapted": "none"}}
    missing["data"] = mapping["data"] | {"shards": "noshards"}
    directory = write_experiment(folder / "wrong", missing)
    done = launch("python", 1, "evaluate.py", f"--config-dir={directory}", "experiment=tiny", check=False)
    assert done.returncode == 2
    assert [line.split("';")[0] for line in done.stderr.splitlines()] == [
        "error: evaluate.base: there is no folder 'nobase",
        "error: evaluate.adapted: there is no folder 'none",
        "error: data.shards: there is no folder 'noshards",
    ]


def test_a_model_compared_with_itself_shows_no_difference(prepared, config):
    found = evaluate(replace(config, evaluate=replace(config.evaluate, adapted=str(prepared[0] / "model"))))
    assert {result.difference.value for result in found.sources} == {0.0}
    assert {result.outcome for result in found.sources} == {"undecided"}


def test_a_source_that_is_not_prepared_is_not_run(prepared, config, tmp_path):
    (tmp_path / "domain").symlink_to(prepared[0] / "shards" / "domain")
    found = evaluate(replace(config, data=replace(config.data, shards=str(tmp_path))))
    assert [result.status for result in found.sources] == ["measured", "not run"]
    assert "run launch/prepare.py" in found.sources[1].reason
    record = write_report(found, tmp_path)
    assert list(record["macro"]) == ["domain"]


def test_nothing_prepared_is_refused(config, tmp_path):
    with pytest.raises(UserError) as caught:
        evaluate(replace(config, data=replace(config.data, shards=str(tmp_path))))
    assert [problem.split(": not run")[0] for problem in caught.value.problems] == [
        "source 'domain'",
        "source 'general'",
    ]


def test_a_window_beyond_the_models_positions_is_refused(config):
    with pytest.raises(UserError, match=r"evaluation\.seq_len: 4096 is beyond the 128 positions of evaluate\.base"):
        check_inputs(replace(config, evaluation=replace(config.evaluation, seq_len=4096)))


def test_a_model_folder_without_weights_is_refused_by_its_key(prepared, config, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^evaluate\.adapted: .* has no model\.safetensors"):
        check_inputs(replace(config, evaluate=replace(config.evaluate, adapted=str(tmp_path))))
