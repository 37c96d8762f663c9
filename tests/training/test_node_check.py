import pytest

from cpt_dist.training.node_check import NodeFacts, checkpoint_bytes, node_problems

VERSIONS = {"torch": "2.13.0", "python": "3.11.2"}


def facts(**changes):
    """Three nodes; `changes` are those of the last."""
    nodes = [NodeFacts(rank, f"n{rank}", dict(VERSIONS), clock=1000.0, free_bytes=10**9) for rank in range(3)]
    for name, value in changes.items():
        setattr(nodes[2], name, value)
    return nodes


def problems(nodes, needed=0):
    return node_problems(nodes, needed, "/runs/law", max_skew_seconds=30)


def test_equal_nodes_have_no_problem():
    assert problems(facts(), needed=10**9) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.1"}}, "node n2: torch is 2.12.1, elsewhere 2.13.0; install the same"),
        ({"clock": 1031.0}, "node n2: its clock is +31 s off the others"),
        ({"sees_token": False}, "node n2: run_dir /runs/law is not the one of rank 0; it must be on a shared disk"),
    ],
)
def test_the_node_that_differs_is_named(changes, text):
    (problem,) = problems(facts(**changes))
    assert problem.startswith(text)


def test_all_problems_of_all_nodes_are_told_at_once():
    assert len(problems(facts(clock=0.0, sees_token=False), needed=2 * 10**9)) == 3


def test_a_disk_without_room_for_the_checkpoints_is_named():
    (problem,) = problems(facts(), needed=2 * 10**9)
    assert "the disk of /runs/law has 1.00 GB free, 2.00 GB are needed" in problem


def test_a_checkpoint_is_three_fp32_numbers_a_parameter(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert checkpoint_bytes(str(tmp_path)) == 17 * 12
