import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.config import ScheduleConfig
from cpt_dist.training.schedules import learning_rate

schedules = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["cosine", "wsd", "constant"]),
    peak_lr=st.floats(1e-6, 1e-2),
    min_lr_ratio=st.floats(0, 1),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0.01, 0.5),
    decay_shape=st.sampled_from(["linear", "1-sqrt"]),
)


def curve(schedule, points=11):
    return [learning_rate(schedule, step / (points - 1)) for step in range(points)]


def test_cosine_has_the_published_values():
    schedule = ScheduleConfig(name="cosine", peak_lr=1.0, min_lr_ratio=0.1, warmup=0.2)
    assert curve(schedule, 6) == pytest.approx([0.0, 1.0, 0.8681981, 0.55, 0.2318019, 0.1])


def test_wsd_is_flat_and_then_falls_as_one_minus_the_square_root():
    schedule = ScheduleConfig(name="wsd", peak_lr=1.0, min_lr_ratio=0.0, warmup=0.1, decay=0.4)
    assert curve(schedule) == pytest.approx([0, 1, 1, 1, 1, 1, 1, 0.5, 0.2928932, 0.1339746, 0.0])


def test_wsd_can_fall_linearly():
    schedule = ScheduleConfig(name="wsd", peak_lr=1.0, min_lr_ratio=0.2, warmup=0.0, decay=0.5, decay_shape="linear")
    assert curve(schedule, 5) == pytest.approx([1, 1, 1, 0.6, 0.2])


@given(schedules)
def test_no_schedule_leaves_the_range_from_zero_to_its_peak(schedule):
    assert all(0 <= rate <= schedule.peak_lr * (1 + 1e-12) for rate in curve(schedule, 101))


@given(schedules)
def test_after_warmup_no_schedule_rises(schedule):
    rates = [learning_rate(schedule, at / 200) for at in range(200 + 1) if at / 200 >= schedule.warmup]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(rates))


@given(schedules, st.floats(1, 10))
def test_a_schedule_stays_at_its_end_value_beyond_the_end(schedule, progress):
    end = schedule.peak_lr * (1 if schedule.name == "constant" else schedule.min_lr_ratio)
    assert learning_rate(schedule, progress) == pytest.approx(end)


@given(schedules, st.floats(0, 1))
def test_a_schedule_has_no_jump(schedule, progress):
    step = 1e-9
    near = abs(learning_rate(schedule, progress + step) - learning_rate(schedule, progress))
    # 1 - sqrt has an infinite slope where the decay begins: sqrt(step / decay) is its largest change.
    slack = 1.01 * (step / schedule.decay) ** 0.5 + step / max(schedule.warmup, step) * (schedule.warmup > step)
    assert near <= schedule.peak_lr * (slack + 1e-6)
