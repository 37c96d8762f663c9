"""Curation as array jobs on a real Slurm gives the files of one process."""

import subprocess
import sys

import pytest

from cpt_dist.corpus.curation.curate import curate
from tests.corpus.test_curation import ROOT, curation_config, files_below

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_array_jobs_on_two_nodes_give_the_files_of_one_process(slurm, tmp_path):
    config = curation_config(tmp_path)
    curate(config)
    raw = {name: source.raw[0] for name, source in config.data.sources.items()}
    sources = ", ".join(
        f"{name}: {{raw: ['{path}'], role: {config.data.sources[name].role}, curation: {{}}}}"
        for name, path in raw.items()
    )
    words = [
        f"run_dir={tmp_path}",
        "what=curate",
        "executor=slurm",
        "tasks=3",
        f"data.tokenizer={config.data.tokenizer}",
        f"data.shards={tmp_path}/shards",
        f"data.curation.folder={tmp_path}/by_slurm",
        f"data.curation.block_bytes={config.data.curation.block_bytes}",
        "data.held_out_fraction=0.0",
        "data.curation.slurm.partition=main",
        "data.curation.slurm.mem_per_cpu_gb=1",
        "+data.curation.slurm.sbatch_args={mem-per-cpu: 200M}",
        "data.curation.slurm.poll_seconds=0.5",
        f"+data.sources={{{sources}}}",
    ]
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), *words]
    environment = slurm.environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    logs = "\n".join(path.read_text()[-1500:] for path in tmp_path.glob("by_slurm/work/logs/*/slurm_logs/*"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert files_below(tmp_path / "by_slurm") == files_below(tmp_path / "curated")
