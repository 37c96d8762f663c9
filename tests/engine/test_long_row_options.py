"""The options that save memory on long rows, under both engines on two ranks: the losses of a run without them."""

import copy

import pytest

from tests.engine.conftest import run_jobs
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed]

OPTIONS = {
    "chunked": {"mlp_chunk_tokens": 24},
    "all": {"activation_checkpointing": True, "activation_offload": True, "mlp_chunk_tokens": 24},
}
ENGINES = {
    "fsdp": {"name": "fsdp"},
    "zero": {"name": "zero"},
}
SHARED = {f"{name} sharing rows": engine | {"context_parallel": 2} for name, engine in ENGINES.items()}


def test_both_engines_give_the_losses_of_a_run_without_any_option(tmp_path):
    # So wide that ZeRO-3 gathers the MLP's matrices for each use; smaller ones it keeps on every rank.
    base = tiny_run.build(tmp_path, intermediate_size=2048)
    # 5 rows a step on two ranks: in each step one rank has a row of 3 chunks where the other has none.
    base["stages"][0] |= {"tokens": "1280", "batch_tokens": "320"}

    def job(name, engine, options):
        config = copy.deepcopy(base) | {"run_dir": str(tmp_path / name)}
        config["engine"] |= engine
        config["model"] |= options
        return {"config": config}

    jobs = [(1, job("plain", ENGINES["fsdp"], {}))]
    jobs += [(2, job(f"{e} {o}", ENGINES[e], OPTIONS[o])) for e in ENGINES for o in OPTIONS]
    jobs += [(2, job(f"{e} all", SHARED[e], OPTIONS["all"])) for e in SHARED]
    run_jobs(tmp_path, jobs)
    names = [
        "plain",
        *(f"{engine} {options}" for engine in ENGINES for options in OPTIONS),
        *(f"{e} all" for e in SHARED),
    ]
    losses = {name: [record["loss"] for record in tiny_run.read_metrics(tmp_path / name)] for name in names}
    assert len(losses["plain"]) == 4
    for name, found in losses.items():
        assert found == pytest.approx(losses["plain"], rel=1e-6), name
