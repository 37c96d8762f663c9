"""A user's mistakes: one line each, exit code 2, no traceback, nothing lost."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import tiny_run
from tests.helpers.models import tiny_llama

pytestmark = pytest.mark.e2e


def refusal(script, *arguments, **options):
    """The error lines of a launch that must be refused."""
    done = tiny_run.launch("python", 1, script, *arguments, check=False, **options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines, done.stderr
    return lines


def flipped(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("modle.path=x", "did you mean 'model'?"),
        ("optimizer.bta1=0.9", "'optimizer' has no key 'bta1'; did you mean 'beta1'?"),
        ("engine=zerro3", "no such engine; did you mean 'zero3'?"),
        ("engine.name=zeros", "'zeros' is unknown; did you mean 'zero'?"),
        ("engine.micro_batch=many", "'many' is no whole number; write one, such as engine.micro_batch=8"),
        ("distillation.weight=-1", "distillation.weight: -1.0 must be positive and finite"),
        ("experiment=dmeo", "no such experiment; did you mean 'demo'?"),
        ("stages.0.seq_length=3", "'stages.0' has no key 'seq_length'; did you mean 'seq_len'?"),
        ("model.path", "write it as key=value"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(tiny, argument, message):
    (line,) = refusal("train.py", *tiny.arguments(argument))
    assert message in line


def test_a_mistake_in_the_configuration_is_reported_within_two_seconds_of_processor_time(tiny):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    refusal("train.py", *tiny.arguments("engine.name=zeros"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_misspelt_key_in_a_file_names_its_neighbour(tiny):
    (line,) = refusal("train.py", *tiny.arguments(optimizer={"weight_decai": 0.1}))
    assert "did you mean 'weight_decay'?" in line


def test_all_mistakes_are_reported_at_once(tiny):
    assert len(refusal("train.py", *tiny.arguments("engine.name=zeros", "optimizer.beta1=2", "schedule.warmup=7"))) >= 3


def test_missing_values_are_named():
    assert any("model.path is missing" in line for line in refusal("train.py", "run_dir=x"))


def test_a_missing_model_folder(tiny):
    (line,) = refusal("train.py", *tiny.arguments("model.path=/nowhere/model"))
    assert "/nowhere/model" in line


def test_rows_longer_than_the_model_allows(tiny):
    lines = refusal("train.py", *tiny.arguments("stages.0.seq_len=256"))
    assert any("beyond the 128 positions" in line for line in lines)


def test_an_empty_corpus(tiny, tmp_path):
    raw = tmp_path / "empty.jsonl"
    raw.write_text("")
    sources = {"empty": {"raw": [str(raw)]}}
    data = {"shards": str(tmp_path / "shards"), "sources": sources}
    lines = refusal("prepare.py", *tiny.arguments(data=data, stages=[]))
    assert any("empty" in line for line in lines)


@pytest.mark.parametrize(("policy", "kept"), [("drop", 1), ("replace", 2)])
def test_invalid_utf8_is_kept_or_dropped_by_policy_and_counted(tiny, tmp_path, policy, kept):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_bytes(b"w001 w002 w003")
    (raw / "b.txt").write_bytes(b"w004 \xff\xfe w005")
    data = {"shards": str(tmp_path / "shards"), "invalid_utf8": policy, "held_out_fraction": 0.0}
    data["sources"] = {"mixed": {"raw": [str(raw)]}}
    tiny_run.launch("python", 1, "prepare.py", *tiny.arguments(data=data, stages=[]))
    import json

    counts = json.loads((tmp_path / "shards" / "mixed" / "manifest.json").read_text())["counts"]
    assert counts["read"] == 2
    assert counts["kept"] == kept
    assert sum(counts["dropped"].values()) == 2 - kept


@pytest.fixture
def own_shards(tiny, tmp_path):
    """A copy of the shards to be damaged, and the `data` group that reads it."""
    shutil.copytree(tiny.folder / "shards", tmp_path / "shards")
    return tmp_path / "shards", tiny.config["data"] | {"shards": str(tmp_path / "shards")}


def test_a_truncated_shard_is_named(tiny, own_shards):
    shards, data = own_shards
    path = shards / "domain" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (line,) = refusal("train.py", *tiny.arguments(data=data))
    assert "domain" in line
    assert "shard-00000" in line


def test_a_flipped_byte_in_a_shard_is_named(tiny, own_shards):
    shards, data = own_shards
    path = shards / "general" / "shard-00000.safetensors"
    flipped(path, path.stat().st_size // 2)
    lines = refusal("train.py", *tiny.arguments(data=data))
    assert any("general" in line and "shard-00000" in line and "checksum" in line for line in lines)


def test_unprepared_shards_are_named_with_the_fix(tiny, own_shards):
    shards, data = own_shards
    (shards / "domain" / "manifest.json").unlink()
    (line,) = refusal("train.py", *tiny.arguments(data=data))
    assert "launch/prepare.py" in line


def test_another_tokenizer_than_the_shards(tiny, tmp_path):
    shutil.copytree(tiny.folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace("w007", "w7"))
    lines = refusal("train.py", *tiny.arguments(f"model.path={tmp_path / 'model'}"))
    assert all("tokenizer" in line for line in lines)


def test_more_ranks_than_the_batch_allows(tiny):
    lines = refusal("train.py", *tiny.arguments(), env={"WORLD_SIZE": "5", "RANK": "0", "PATH": "/usr/bin:/bin"})
    assert any("too few for 5 ranks" in line for line in lines)


@pytest.fixture(scope="module")
def trained(tiny):
    """The arguments and the run directory of a finished run of 4 steps."""
    stage = tiny.config["stages"][0] | {"tokens": "1024"}
    arguments = tiny.arguments(stages=[stage])
    run_dir = tiny.run_dir
    tiny_run.launch("python", 1, "train.py", *arguments)
    return arguments, run_dir


def own_run(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_of_another_model(tiny, trained, tmp_path):
    arguments, run_dir = trained
    shutil.copytree(tiny.folder / "model", tmp_path / "model")
    tiny_llama(tmp_path / "model", intermediate_size=80)
    changed = (f"run_dir={own_run(run_dir, tmp_path)}", f"model.path={tmp_path / 'model'}")
    (line,) = refusal("train.py", *arguments, *changed)
    assert "is of another model" in line
    assert "mlp" in line


@pytest.mark.parametrize("name", ["trainer.json", "probe.safetensors", "state/.metadata", "state/__0_0.distcp"])
def test_a_damaged_checkpoint_file_is_named(trained, tmp_path, name):
    arguments, run_dir = trained
    run_dir = own_run(run_dir, tmp_path)
    path = run_dir / "checkpoints" / "step-00000004" / name
    flipped(path, path.stat().st_size // 2)
    (line,) = refusal("train.py", *arguments, f"run_dir={run_dir}")
    assert name in line
    assert "checksum" in line


def test_another_seed_than_the_checkpoint_is_refused(trained):
    arguments, _ = trained
    (line,) = refusal("train.py", *arguments, "seed=7")
    assert "seed was 0 and is 7" in line


def test_consolidating_a_step_that_is_not_there(trained):
    arguments, _ = trained
    (line,) = refusal("consolidate.py", *arguments, "consolidate.step=77")
    assert "77" in line
    assert "[4]" in line


def test_evaluating_before_consolidating(trained):
    arguments, run_dir = trained
    lines = refusal("evaluate.py", *arguments)
    assert any(str(run_dir / "model") in line for line in lines)
    assert not (Path(run_dir) / "report.json").exists()
