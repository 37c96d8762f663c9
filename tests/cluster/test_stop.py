import pytest

from cpt_dist.cluster.start_folder import read_outcome, record_outcome
from cpt_dist.cluster.stop import REASONS, SIGNAL, STOP_FILE, TIME_LIMIT, StopWatch, agreed_reason


@pytest.fixture
def folders(tmp_path):
    for name in ("run", "start"):
        (tmp_path / name).mkdir()
    return tmp_path / "run", tmp_path / "start"


def reason(folders, now=0.0, end=None, save=0.0, step=0.0):
    return StopWatch(*folders, end, margin_seconds=60).reason(now, save, step)


def test_nothing_asked_means_going_on(folders):
    assert reason(folders) is None


def test_the_file_of_a_start_stops_the_job_and_that_of_the_run_the_run(folders):
    run, start = folders
    (start / "stop").touch()
    assert reason(folders) == SIGNAL
    (run / "stop").touch()
    assert reason(folders) == STOP_FILE


@pytest.mark.parametrize(
    ("now", "save", "step", "expected"),
    [(939, 5, 1, None), (940, 5, 1, TIME_LIMIT), (860, 50, 20, TIME_LIMIT), (859, 50, 20, None)],
)
def test_the_time_limit_leaves_room_for_two_steps_and_twice_the_longest_save(folders, now, save, step, expected):
    assert reason(folders, now, 1000.0, save, step) == expected


def test_one_rank_is_enough_and_the_stop_of_the_run_wins():
    assert agreed_reason([0, 0, 0]) is None
    assert agreed_reason([3, 0, 0]) == SIGNAL
    assert agreed_reason([3, 1, 1]) == STOP_FILE == REASONS[-1]


def test_the_first_outcome_of_a_start_counts(tmp_path):
    assert read_outcome(tmp_path) is None
    record_outcome({"CPT_START_DIR": str(tmp_path)}, 75, "time limit")
    record_outcome({"CPT_START_DIR": str(tmp_path)}, 2, "error")
    assert read_outcome(tmp_path) == (75, "time limit")


def test_without_a_batch_script_no_outcome_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_outcome({}, 0, "finished")
    assert list(tmp_path.iterdir()) == []
