import json
import socket
import time

import pytest

from cpt_dist.cluster.health import (
    OWN_TIME,
    Peer,
    State,
    append_report,
    blamed_nodes,
    is_collective_failure,
    missing_ranks,
    straggler,
)
from cpt_dist.cluster.heartbeat import Activity, Heartbeat, ask, ask_all

OWN = State(12, "forward and backward", 30.0)
PEERS = [Peer(rank, f"n{rank}", f"10.0.0.{rank}", 4000) for rank in range(1, 4)]


def named(answers, **options):
    found = missing_ranks(OWN, dict(zip(PEERS, answers, strict=True)), **options)
    return [str(one) for one in found]


def test_a_silent_rank_is_named_with_its_host():
    assert named([OWN, None, OWN]) == ["rank 2 on n2 (10.0.0.2) doesn't answer"]


def test_a_rank_that_ended_since_it_missed_another_is_no_culprit():
    assert named([None, None, OWN], witnesses=[1]) == ["rank 2 on n2 (10.0.0.2) doesn't answer"]
    assert named([None, OWN, OWN], witnesses=[1]) == ["rank 1 on n1 (10.0.0.1) doesn't answer"]


def test_a_rank_that_is_behind_is_named_with_what_it_does():
    slow = State(12, "data", 58.4)
    assert named([OWN, OWN, slow]) == ["rank 3 on n3 (10.0.0.3) is still at step 12, data, for 58 s"]


def test_nobody_is_named_where_all_are_at_one_place_or_only_this_rank_is_behind():
    assert named([OWN, OWN, OWN]) == []
    assert named([State(13, "data", 1.0)] * 3) == []


def test_a_rank_waiting_in_the_first_collective_of_a_step_is_behind_one_that_left_it():
    assert len(named([State(12, "meeting", 9.0), OWN, OWN])) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Timed out waiting 8000ms for recv operation to complete"), True),
        (RuntimeError("size mismatch for weight"), False),
        (ValueError("x"), False),
    ],
)
def test_only_failures_of_collectives_are_explained(error, expected):
    assert is_collective_failure(error) is expected


def test_a_save_that_failed_for_a_lost_rank_is_one_too():
    outer = ValueError("the checkpoint was not written")
    outer.__cause__ = RuntimeError("Connection reset by peer")
    assert is_collective_failure(outer)


def report(run_dir, rank, node, lost):
    entries = [{"rank": 0, "node": name, "why": ""} for name in lost]
    append_report(run_dir, {"start": "7.0", "rank": rank, "node": node, "lost": entries})


def test_the_node_that_most_ranks_missed_is_blamed(tmp_path):
    (tmp_path / "health").mkdir()
    report(tmp_path, 0, "n1", ["n2"])
    report(tmp_path, 1, "n2", ["n1"])
    assert blamed_nodes(tmp_path, "7.0", ["n1", "n2"]) == []
    report(tmp_path, 2, "n3", ["n2"])
    assert blamed_nodes(tmp_path, "7.0", ["n1", "n2", "n3"]) == ["n2"]
    assert blamed_nodes(tmp_path, "7.1", ["n1", "n2", "n3"]) == []


def test_the_straggler_is_who_lost_most_against_the_median():
    times = [[0.1, 1.0, 0.2, 0.01], [0.1, 1.1, 0.2, 0.01], [0.9, 1.2, 0.2, 0.01]]
    found = straggler(times)
    assert (found.rank, found.phase, found.seconds, found.median_seconds) == (2, OWN_TIME[0], 0.9, 0.1)
    assert straggler(times[:1]) is None


@pytest.fixture
def heartbeat(tmp_path):
    activity = Activity()
    beat = Heartbeat(tmp_path, 3, activity, "7.0", every_seconds=0.05)
    yield tmp_path, activity, beat
    beat.stop()


def test_a_rank_says_what_it_does_in_its_file_and_at_its_port(heartbeat):
    folder, activity, beat = heartbeat
    activity.enter("data", 5)
    state = ask(Peer(3, "here", "127.0.0.1", beat.port))
    assert (state.step, state.phase) == (5, "data")
    time.sleep(0.2)
    said = json.loads((folder / "health" / "rank-00003.json").read_text())
    assert (said["rank"], said["step"], said["phase"], said["start"]) == (3, 5, "data", "7.0")


def test_who_isnt_there_or_is_another_rank_gives_no_answer(heartbeat):
    *_, beat = heartbeat
    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = silent.getsockname()[1]
    peers = [Peer(3, "here", "127.0.0.1", closed), Peer(4, "here", "127.0.0.1", beat.port)]
    assert list(ask_all(peers).values()) == [None, None]


def test_a_phase_that_lasts_too_long_is_warned_of_once(heartbeat):
    _, activity, beat = heartbeat
    calls = []
    activity.enter("forward and backward", 1)
    beat.warn(0.1, lambda: calls.append(activity.phase))
    time.sleep(0.5)
    assert calls == ["forward and backward"]


def test_the_time_of_each_phase_is_kept():
    activity = Activity()
    activity.enter("data", 1)
    time.sleep(0.05)
    activity.enter("optimizer")
    assert activity.clock["data"] >= 0.05
    assert activity.processor["data"] < 0.05
    activity.reset()
    assert activity.clock == {}
