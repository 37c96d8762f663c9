"""Batch files against golden ones, and whether anything in them can break out of its quotes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_dist.cluster.request import parse_request
from cpt_dist.cluster.slurm_script import render, sbatch_value
from cpt_dist.cluster.submission import jobs_of
from cpt_dist.cluster_config import ClusterConfig
from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | st.sampled_from(
    [
        "$(touch broken)",
        "`id`",
        "a b",
        "it's",
        '"',
        "\\",
        "\n#SBATCH --time=9",
        "'; exit 1; '",
        "$HOME",
        "*",
        "-n",
        "!!",
    ]
)


def jobs(*words, run_dir="/data/runs/law", **cluster):
    config = CptConfig(run_dir=run_dir, stages=[StageConfig(name="short"), StageConfig(name="long")])
    config.cluster = ClusterConfig(name="slurm", python="/opt/venv/bin/python", **cluster)
    return jobs_of(parse_request(list(words)), config, Path("/data/runs/law/code/0123456789ab"), Path("/home/me"))


CASES = {
    "torchrun": lambda: jobs(
        "experiment=law",
        "data.shards=/data/my shards",
        nodes=4,
        ranks_per_node=8,
        gpus_per_node=8,
        cpus_per_rank=6,
        account="bio",
        partition="gpu",
        qos="long",
        time="24:00:00",
        sbatch=["--constraint=a100"],
        modules=["cuda/12.4"],
        environment={"HF_HOME": "/data/hf cache"},
        setup=["ulimit -l unlimited"],
    ),
    "deepspeed": lambda: jobs(
        "experiment=law",
        launcher="deepspeed",
        nodes=2,
        ranks_per_node=4,
        container=["apptainer", "exec", "--nv", "my image.sif"],
        requeue=False,
    ),
    "srun": lambda: jobs("experiment=law", launcher="srun", nodes=2, ranks_per_node=4),
    "sweep": lambda: jobs("experiment=law", "sweep.seed=1,2", "sweep.schedule.peak_lr=1e-5,3e-5", max_parallel=2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_file_is_the_golden_one(name):
    (job,) = CASES[name]()
    assert render(job) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_golden_file_is_sound_shell(name):
    assert subprocess.run(["bash", "-n", str(GOLDEN / f"{name}.sbatch")], check=False).returncode == 0


def test_jobs_that_follow_each_other():
    chain = jobs("experiment=law", chain=["stages", "consolidate", "evaluate"])
    assert [(job.name, job.script) for job in chain] == [
        ("train-0", "train.py"),
        ("train-1", "train.py"),
        ("consolidate", "consolidate.py"),
        ("evaluate", "evaluate.py"),
    ]
    assert [job.tasks[0][-1] for job in chain] == [
        "stop_after_stage=short",
        "stop_after_stage=long",
        "run_dir=/data/runs/law",
        "run_dir=/data/runs/law",
    ]


FAKES = {
    "srun": 'while [[ "$1" == -* ]]; do shift; done\nexec "$@"\n',
    "scontrol": 'case "$2" in hostnames) echo n1;; node) echo "NodeName=n1 NodeAddr=10.0.0.7 Port=1";; esac\n',
    "squeue": "echo N/A\n",
}
RECORDER = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as handle:
    handle.write(json.dumps([sys.argv[1:], os.environ.get("OWN"), os.getcwd()]) + chr(10))
"""


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """A folder of stand-ins for Slurm's programs and the interpreter, which records its arguments."""
    folder = tmp_path_factory.mktemp("fakes")
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}")
    (folder / "recorder").write_text(RECORDER.format(python=sys.executable))
    for path in folder.iterdir():
        path.chmod(0o755)
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "srun"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(TEXT, max_size=3), prefix=st.lists(TEXT, max_size=2), own=TEXT, folder=TEXT)
def test_no_value_breaks_out_of_the_script(fakes, tmp_path_factory, launcher, words, prefix, own, folder):
    place = tmp_path_factory.mktemp("place")
    code = place / "co de'$(x)"
    job = dataclasses.replace(
        jobs(launcher=launcher)[0],
        tasks=[words],
        run_dirs=[str(place / f"run {folder.replace('/', '')[:20]}")],
        log_dir="/logs",
        work_dir=str(place),
        code=str(code),
        python=str(fakes / "recorder"),
    )
    job.cluster.container = [str(fakes / "recorder"), *prefix]
    job.cluster.environment = {"OWN": own}
    environment = {
        "PATH": f"{fakes}:/usr/bin:/bin",
        "RECORD": str(place / "record"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "n1",
    }
    script = place / "job.sbatch"
    script.write_text(render(job))
    subprocess.run(["bash", str(script)], cwd=place, env=environment, capture_output=True, timeout=30, check=False)
    records = [json.loads(line) for line in (place / "record").read_text().splitlines()]
    ranks, requeue = records
    arguments, seen, cwd = ranks
    assert arguments[: len(prefix) + 1] == [*prefix, str(fakes / "recorder")]
    assert arguments[len(arguments) - len(words) - 1 :] == [f"{code}/launch/train.py", *words]
    assert (seen, cwd) == (own, str(place))
    assert f"--run-dir={job.run_dirs[0]}" in requeue[0]
    assert sorted(path.name for path in place.iterdir()) == sorted(["job.sbatch", "record", Path(job.run_dirs[0]).name])


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\x00b", "\x7f"])
def test_what_an_option_line_cannot_hold_is_refused(bad):
    with pytest.raises(UserError, match="control character"):
        sbatch_value(bad, "run_dir")
