import pytest

from cpt_dist.cluster.environment import adopt_slurm_step, first_host, job_end_time, tasks_per_node

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}


def test_a_task_of_srun_gets_what_torch_reads():
    environ = dict(STEP)
    adopt_slurm_step(environ)
    added = {name: value for name, value in environ.items() if name not in STEP}
    assert added == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(29500 + 4711),
    }


def test_a_rendezvous_that_is_given_stays():
    environ = STEP | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}
    adopt_slurm_step(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.7", "1234")


def batch_script():
    return {name: value for name, value in STEP.items() if "STEP" not in name}


@pytest.mark.parametrize(
    "environ",
    [{}, batch_script(), STEP | {"RANK": "0", "WORLD_SIZE": "8"}, STEP | {"SLURM_STEP_NUM_TASKS": "1"}],
    ids=["laptop", "batch script", "worker of torchrun under srun", "shell under srun"],
)
def test_where_no_rank_is_meant_nothing_changes(environ):
    before = dict(environ)
    adopt_slurm_step(environ)
    assert environ == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("rack[1-2]node[3,5]", "rack1node3"),
        ("a[1-2],b", "a1"),
        ("n1,gpu[3-4]", "n1"),
        ("node[12-13]-ib", "node12-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_of_uneven_nodes():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="two"):
        tasks_per_node("two")


@pytest.mark.parametrize(("text", "end"), [("1700000000", 1700000000.0), ("", None), ("0", None), ("N/A", None)])
def test_the_end_of_the_job(text, end):
    assert job_end_time({"SLURM_JOB_END_TIME": text}) == end
