import json

import pytest

from cpt_dist.cluster.requeue import Policy, after_start, decide
from cpt_dist.cluster.start_folder import record_outcome

POLICY = Policy(requeue=True, max_restarts=10, max_failures=3, backoff_seconds=30, node_failures=2)


def entry(code, reason="", checkpoint="step-00000010", blamed=()):
    return {"code": code, "reason": reason, "checkpoint": checkpoint, "blamed": list(blamed)}


FAILURE = entry(1, "the ranks ended without a word")


@pytest.mark.parametrize(
    ("history", "line"),
    [
        ([entry(0, "finished")], "0 stop 0"),
        ([entry(2, "error")], "2 stop 0"),
        ([entry(75, "time limit")], "75 requeue 0"),
        ([entry(75, "signal")], "75 requeue 0"),
        ([entry(75, "stop file")], "75 stop 0"),
        ([FAILURE], "1 requeue 30"),
        ([FAILURE, FAILURE], "1 requeue 60"),
        ([FAILURE, FAILURE, FAILURE], "1 stop 0"),
        ([FAILURE, FAILURE, entry(1, checkpoint="step-00000020")], "1 requeue 30"),
        ([FAILURE, FAILURE, entry(75, "signal"), FAILURE], "1 requeue 30"),
        ([entry(1, blamed=["n2"]), entry(75, "signal"), entry(1, blamed=["n1", "n2"])], "1 requeue 30 n2"),
    ],
)
def test_what_becomes_of_a_job(history, line):
    assert decide(history, 0, POLICY).line() == line


def test_restarts_are_bounded_whatever_the_reason():
    assert decide([entry(75, "time limit")], 9, POLICY).requeue
    assert not decide([entry(75, "time limit")], 10, POLICY).requeue


def test_the_wait_doubles_up_to_an_hour():
    policy = Policy(True, 100, 100, 30, 2)
    delays = [decide([FAILURE] * number, 0, policy).delay_seconds for number in range(1, 10)]
    assert delays == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_job_that_may_not_start_again_keeps_its_exit_code():
    policy = Policy(False, 10, 3, 30, 2)
    assert decide([entry(75, "time limit")], 0, policy).line() == "75 stop 0"


def test_the_history_of_a_run_says_how_each_start_ended(tmp_path):
    for restarts, (code, reason) in enumerate([(75, "signal"), (0, "finished")]):
        start = tmp_path / "logs" / f"1.{restarts}"
        start.mkdir(parents=True)
        record_outcome({"CPT_START_DIR": str(start)}, code, reason)
        after_start(tmp_path, start, ["n1"], restarts, POLICY)
    lines = (tmp_path / "slurm" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["signal", "finished"]


def test_a_node_that_was_missed_in_two_failures_is_excluded(tmp_path):
    (tmp_path / "health").mkdir()
    for restarts in (0, 1):
        start = tmp_path / "logs" / f"1.{restarts}"
        start.mkdir(parents=True)
        report = {"start": start.name, "rank": 0, "node": "n1", "lost": [{"rank": 1, "node": "n2", "why": ""}]}
        with open(tmp_path / "health" / "lost.jsonl", "a") as handle:
            handle.write(json.dumps(report) + "\n")
        decision = after_start(tmp_path, start, ["n1", "n2"], restarts, POLICY)
    assert decision.line() == "1 requeue 60 n2"
