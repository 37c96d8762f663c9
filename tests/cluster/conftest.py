import os

import pytest

from tests.helpers import slurm_cluster, tiny_run


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real Slurm of two nodes on this host."""
    missing = slurm_cluster.missing_programs()
    if missing or os.geteuid() != 0:
        reason = f"needs root and Debian's {' '.join(slurm_cluster.PACKAGES)}; missing: {missing or 'root'}"
        if os.environ.get("CPT_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Folder and configuration of a tiny run that saves nothing until its end."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_run.build(folder)
    config["engine"]["timeout_seconds"] = 120
    return folder, config
