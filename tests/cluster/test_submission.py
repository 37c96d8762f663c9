import subprocess
import sys

import pytest

from cpt_dist.cluster.submission import COPIED, ROOT, code_fingerprint, copy_code
from cpt_dist.cluster_config import ClusterConfig, HealthConfig, cluster_problems, health_problems


def submit(*words, cwd=ROOT):
    command = [sys.executable, str(ROOT / "launch" / "submit.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_a_dry_run_shows_the_file_and_writes_nothing(tmp_path):
    done = submit("experiment=demo", f"run_dir={tmp_path}/run", "cluster=slurm", "nodes=4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=4" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=demo"], "cluster.name: 'none' is nothing to submit to; add cluster=slurm"),
        (["experiment=demo", "cluster=slurm", "launcher=mpirun"], "cluster.launcher: 'mpirun' is unknown"),
        (["experiment=demo", "cluster=slurm", "sweep.seed=1,-2"], "seed: -2 must be at least 0"),
        (["experiment=demo", "cluster=slurm", "sweep.sead=1,2"], "did you mean 'seed'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said):
    done = submit(*words, "--dry-run")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_copy_of_the_code_is_whole_and_runs(tmp_path):
    target = tmp_path / "code" / code_fingerprint()
    copy_code(ROOT, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(COPIED)
    assert code_fingerprint(target) == target.name
    words = [sys.executable, str(target / "launch" / "train.py"), "experiment=demo", "--cfg", "job"]
    environment = {"PYTHONPATH": f"{target}:{target}/kernels", "PATH": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("run_dir: runs/demo"), done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "gpu\n#SBATCH --uid=0"}, "cluster.partition"),
        ({"account": "a b"}, "cluster.account"),
        ({"time": "1 day"}, "cluster.time"),
        ({"sbatch": ["--comment=a b"]}, "cluster.sbatch"),
        ({"sbatch": ["--x=1\n--y=2"]}, "cluster.sbatch"),
        ({"after": ["4711", "x"]}, "cluster.after"),
        ({"environment": {"A B": "1"}}, "cluster.environment"),
        ({"chain": ["train"]}, "cluster.chain"),
        ({"nodes": 0}, "cluster.nodes"),
        ({"container": ["a\0b"]}, "cluster: a zero byte"),
    ],
)
def test_a_value_that_a_batch_file_cannot_carry_is_refused(changes, said):
    (problem,) = cluster_problems(ClusterConfig(**changes))
    assert problem.startswith(said)


@pytest.mark.parametrize("time", ["", "90", "24:00:00", "2-12", "2-12:00:00", "90:30"])
def test_what_slurm_takes_as_a_time_limit_is_taken(time):
    assert cluster_problems(ClusterConfig(time=time)) == []


def test_a_warning_after_the_timeout_would_never_come():
    (problem,) = health_problems(HealthConfig(warn_after_seconds=60), timeout_seconds=60)
    assert problem.startswith("health.warn_after_seconds: 60")
