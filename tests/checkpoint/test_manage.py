"""launch/checkpoints.py, as a user starts it, and without a process for what it decides."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from cpt_dist.checkpoint.commit import tidy
from cpt_dist.checkpoint.manage import _in_words, manage
from cpt_dist.checkpoint.retention import Retention
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CheckpointConfig, CheckpointsConfig, CptConfig
from cpt_dist.errors import UserError
from tests.helpers.tiny_run import ROOT


@pytest.fixture
def run_dir(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (10, 20, 30):
        tensors = {"model.a": torch.ones(3), "optimizer.exp_avg.a": torch.ones(3)}
        store.save(step, tensors, {"engine": "fsdp", "position": 4 * step}, None, {"law": 1.5})
    dist.destroy_process_group()
    return tmp_path


def managed(run_dir, what, step="", name="", **checkpoint):
    config = CptConfig(run_dir=str(run_dir), checkpoint=CheckpointConfig(**checkpoint))
    config.checkpoints = CheckpointsConfig(what, step, name)
    manage(config)


def test_plain_words_name_and_show_and_a_bare_call_lists(run_dir):
    def launch(*words):
        command = [sys.executable, str(ROOT / "launch" / "checkpoints.py"), f"run_dir={run_dir}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert launch("name", "20", "middle").returncode == 0
    done = launch("what=show", "step=middle")
    assert "checkpoint 20" in done.stdout, done.stderr
    assert "held-out bits per byte of law: 1.5000" in done.stdout
    done = launch("verfy")
    assert (done.returncode, "did you mean 'verify'" in done.stderr) == (2, True)


def test_the_list_says_who_wrote_what_and_why_it_stays(run_dir, capsys):
    managed(run_dir, "name", "20", "middle", keep_last=1)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if " 20 " in line)
    assert "fsdp" in line
    assert "named 'middle'" in line
    assert "not checked" in line
    assert any(" 10 " in line and "prune removes it" in line for line in out.splitlines())


def test_prune_removes_what_no_rule_keeps(run_dir, capsys):
    managed(run_dir, "prune", keep_last=1, keep_every=20)
    assert "removed [10]; kept [20, 30]" in capsys.readouterr().out


def test_what_a_killed_prune_left_is_taken_away_at_the_next_start(run_dir):
    store = CheckpointStore(run_dir / "checkpoints", retention=Retention(keep_last=1, keep_every=20))
    store.retire_rest()
    assert store.steps() == [20, 30]
    tidy(store.folder)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000020", "step-00000030"]


def test_a_damaged_file_is_named_with_its_rank(run_dir, capsys):
    path = run_dir / "checkpoints" / "step-00000020" / "state" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"checkpoint 20: .*__0_0\.distcp \(written by rank 0\) has \d+ bytes"):
        managed(run_dir, "verify")
    assert "damaged" in capsys.readouterr().out


def test_verify_says_of_each_whether_it_is_whole_and_changes_nothing(run_dir, capsys):
    managed(run_dir, "verify", keep_last=1)
    lines = capsys.readouterr().out.splitlines()
    assert sum(" whole " in line for line in lines) == 3
    assert CheckpointStore(run_dir / "checkpoints").steps() == [10, 20, 30]


def test_one_without_a_readable_manifest_is_listed_and_named(run_dir, capsys):
    (run_dir / "checkpoints" / "step-00000020" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint 20: .*manifest\.json is damaged"):
        managed(run_dir, "list")
    [line] = [line for line in capsys.readouterr().out.splitlines() if " 20 " in line]
    assert line.count("?") == 4


def test_show_says_who_wrote_it_where_the_run_was_and_which_file_is_whole(run_dir, capsys):
    managed(run_dir, "show", "20", keep_last=1)
    out = capsys.readouterr().out
    assert "by fsdp on 1 rank(s); kept because: nothing" in out
    assert "2 tensors, 3 weights; sample 80" in out
    assert sum(" whole " in line for line in out.splitlines()) == 3
    managed(run_dir, "show", "latest", keep_last=1)
    assert "kept because: newest" in capsys.readouterr().out


def test_show_of_a_damaged_one_marks_its_file_and_no_other(run_dir, capsys):
    path = run_dir / "checkpoints" / "step-00000020" / "trainer.json"
    path.write_text(path.read_text().replace("80", "81"))
    with pytest.raises(UserError, match=r"trainer\.json .*block 0 has checksum"):
        managed(run_dir, "show", "20")
    damaged = [line for line in capsys.readouterr().out.splitlines() if " damaged " in line]
    assert len(damaged) == 1
    assert "trainer.json" in damaged[0]


def test_a_name_can_be_taken_away_again(run_dir, capsys):
    managed(run_dir, "name", "10", "first", keep_last=1)
    managed(run_dir, "unname", name="first", keep_last=1)
    assert CheckpointStore(run_dir / "checkpoints").names() == {}
    managed(run_dir, "prune", keep_last=1)
    assert "removed [10, 20]; kept [30]" in capsys.readouterr().out
    managed(run_dir, "prune", keep_last=1)
    assert "removed none; kept [30]" in capsys.readouterr().out


def test_a_run_without_checkpoints_says_so(tmp_path, capsys):
    managed(tmp_path, "list")
    assert "no checkpoints in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (45_600_000, "45.6 MB"), (7.25e9, "7.25 GB"), (2.345e15, "2345 TB")],
)
def test_sizes_are_read_by_people(num_bytes, words):
    assert _in_words(num_bytes) == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show",), "which checkpoint"),
        (("show", "77"), r"no checkpoint of step 77 .* there are: \[10, 20, 30\]"),
        (("name", "10"), "which name"),
        (("name", "10", "latest"), "would be taken for a step"),
        (("unname",), r"which name\? write unname name=NAME"),
        (("name", "10", "7"), "would be taken for a step"),
        (("unname", "", "x"), "no checkpoint has the name 'x'"),
    ],
)
def test_a_wrong_wish_is_one_line(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        managed(run_dir, *arguments)
