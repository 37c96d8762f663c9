"""When held-out text is scored inside training."""

import pytest

from cpt_dist.evaluation_schedule import LOG, STEPS, is_due


def due(schedule, every, num_steps):
    return [step for step in range(1, num_steps + 1) if is_due(schedule, every, step, num_steps)]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (3, [3, 6, 9]), (11, [])])
def test_steps_is_every_so_many(every, steps):
    assert due(STEPS, every, 10) == steps


def test_log_looks_often_in_the_first_twentieth_and_seldom_later():
    steps = due(LOG, 0, 1000)
    assert [step for step in steps if step <= 50] == [1, 2, 4, 8, 16, 32]
    assert [step for step in steps if step > 50] == list(range(75, 1001, 25))


def test_log_takes_its_later_distance_from_every_steps():
    assert due(LOG, 200, 1000) == [1, 2, 4, 8, 16, 32, 200, 400, 600, 800, 1000]


def test_a_short_run_is_scored_after_every_step():
    assert due(LOG, 0, 12) == list(range(1, 13))
