import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from cpt_dist.config import CptConfig, ScheduleConfig, StageConfig
from cpt_dist.errors import UserError
from cpt_dist.schedule_config import DECAY_SHAPES, SCHEDULES, schedule_problems
from cpt_dist.schedules import learning_rate, run_learning_rate, stage_schedules

ROOT = Path(__file__).resolve().parents[1]


def ratios(low=0.0, high=1.0):
    return st.floats(low, high)


@st.composite
def any_schedule(draw):
    """A schedule of any kind that passes its checks."""
    schedule = draw(
        st.builds(
            ScheduleConfig,
            name=st.sampled_from(sorted(SCHEDULES)),
            peak_lr=st.floats(1e-6, 1e-2),
            start_lr_ratio=ratios(),
            min_lr_ratio=ratios(0.001),
            warmup=ratios(0.001, 0.4),
            decay=ratios(0.01, 0.3),
            decay_shape=st.sampled_from(DECAY_SHAPES),
            cycles=st.integers(1, 5),
            cooldown=ratios(0.001, 0.3),
            constant_lr_ratio=ratios(),
        )
    )
    assume(not schedule_problems(schedule))
    if schedule.name == "linear_to_zero":
        schedule.start_lr_ratio, schedule.warmup = 1.0, 0.0
    return schedule


schedules = any_schedule()


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


def end_ratio(schedule):
    ends = {
        "constant": 1.0,
        "linear_to_zero": 0.0,
        "infinite": min(schedule.min_lr_ratio, schedule.constant_lr_ratio),
        "inverse_sqrt": min(schedule.min_lr_ratio, (schedule.warmup / max(1 - schedule.decay, schedule.warmup)) ** 0.5),
    }
    return ends.get(schedule.name, schedule.min_lr_ratio)


@given(schedules)
def test_after_warmup_a_schedule_without_restarts_never_rises(schedule):
    assume(schedule.name != "cosine_restarts")
    rates = [learning_rate(schedule, at / 200) for at in range(200 + 1) if at / 200 >= schedule.warmup]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(rates))


@given(schedules)
def test_a_schedule_begins_where_it_says(schedule):
    assert learning_rate(schedule, 0.0) == pytest.approx(schedule.peak_lr * schedule.start_lr_ratio)


@given(schedules, st.floats(1, 10))
def test_a_schedule_stays_at_its_end_value_beyond_the_end(schedule, progress):
    assert learning_rate(schedule, progress) == pytest.approx(schedule.peak_lr * end_ratio(schedule))


@given(schedules, st.floats(0, 1))
def test_a_schedule_has_no_jump(schedule, progress):
    step = 1e-9
    near = abs(learning_rate(schedule, progress + step) - learning_rate(schedule, progress))
    # 1 - sqrt has an infinite slope where the decay begins: sqrt(step / decay) is its largest change.
    slack = 1.01 * (step / schedule.decay) ** 0.5 + 2 * step * schedule.cycles / max(schedule.warmup, 1e-3)
    slack += 2 * step / schedule.cooldown
    assert near <= schedule.peak_lr * (slack + 1e-6)


def test_restarts_warm_up_again_and_end_low():
    schedule = ScheduleConfig(name="cosine_restarts", peak_lr=1.0, min_lr_ratio=0.1, warmup=0.5, cycles=2)
    assert curve(schedule, 9) == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.55, 1, 0.55, 0.1])


def test_an_infinite_schedule_cools_down_holds_and_anneals():
    schedule = ScheduleConfig(
        name="infinite", peak_lr=1.0, min_lr_ratio=0.1, warmup=0.1, cooldown=0.2, constant_lr_ratio=0.4,
        decay=0.2, decay_shape="exponential",
    )  # fmt: skip
    assert curve(schedule) == pytest.approx([0, 1, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.2, 0.1])


def test_inverse_sqrt_falls_as_the_root_of_the_warm_up():
    schedule = ScheduleConfig(name="inverse_sqrt", peak_lr=1.0, warmup=0.01, decay=0.0)
    assert learning_rate(schedule, 0.04) == pytest.approx(0.5)
    assert learning_rate(schedule, 1.0) == pytest.approx(0.1)


def test_linear_goes_straight_to_its_minimum():
    schedule = ScheduleConfig(name="linear", peak_lr=1.0, start_lr_ratio=0.5, min_lr_ratio=0.0, warmup=0.2)
    assert curve(schedule, 6) == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0])


PUBLISHED = {
    "ibrahim": [0.0, 1.0, 0.55, 0.1],
    "parmar": [1.0, 1.0, 0.505, 0.01],
    "code_llama": [0.0, 3e-4, 3e-4 * (1 + 1 / 30) / 2, 1e-5],
    "conservative_7b": [0.0, 1e-5, 5.5e-6, 1e-6],
    "conservative_13b": [0.0, 8e-6, 4.4e-6, 8e-7],
    "conservative_70b": [0.0, 5e-6, 2.75e-6, 5e-7],
}
"""Preset -> rate at the start, the end of the warm-up, half-way down and the end, of 1.0 where the user gives it."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_rates_of_its_source(name):
    given = yaml.safe_load((ROOT / "configs" / "schedule" / f"{name}.yaml").read_text())
    schedule = ScheduleConfig(**{"peak_lr": 1.0} | {key: float(v) if key != "name" else v for key, v in given.items()})
    turns = [0.0, schedule.warmup, (1 + schedule.warmup) / 2, 1.0]
    assert [learning_rate(schedule, at) for at in turns] == pytest.approx(PUBLISHED[name], rel=1e-4)


def config_of(*schedules):
    return CptConfig(stages=[StageConfig(name=f"s{i}", schedule=one) for i, one in enumerate(schedules)])


@given(schedules, schedules, st.booleans())
def test_a_stage_that_goes_on_from_the_one_before_has_no_jump(first, second, keeps_peak):
    second.start_lr_ratio = None
    end = first.peak_lr * end_ratio(first)
    assume(end > 0)
    second.peak_lr = None if keeps_peak else max(second.peak_lr, end)
    rate = run_learning_rate(config_of(first, second))
    assert rate(1, 0.0) == pytest.approx(rate(0, 1.0), rel=1e-9)


def test_a_cool_down_forks_from_the_constant_phase():
    trunk = ScheduleConfig(name="infinite", peak_lr=1e-3, decay=0.0, cooldown=0.5, constant_lr_ratio=0.25)
    fork = ScheduleConfig(name="linear_to_zero")
    rate = run_learning_rate(config_of(trunk, fork))
    assert [rate(1, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([2.5e-4, 1.25e-4, 0.0])


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ([ScheduleConfig(peak_lr=None)], r"stages.0 \('s0'\).schedule.peak_lr: null takes the end of the stage before"),
        ([ScheduleConfig(start_lr_ratio=None)], "schedule.start_lr_ratio: null takes the end"),
        (
            [ScheduleConfig(name="constant", peak_lr=1.0), ScheduleConfig(peak_lr=0.1, start_lr_ratio=None)],
            "ends at 1, above this stage's peak_lr 0.1; raise the peak",
        ),
        (
            [ScheduleConfig(name="linear", min_lr_ratio=0.0), ScheduleConfig(peak_lr=None)],
            r"peak_lr: the stage before ends at a learning rate of 0",
        ),
    ],
)
def test_a_stage_that_cannot_go_on_is_refused_by_name(schedules, message):
    with pytest.raises(UserError, match=message):
        stage_schedules(config_of(*schedules))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ScheduleConfig(name="cosin"), "name: 'cosin' is unknown; did you mean 'cosine'"),
        (ScheduleConfig(peak_lr=-1e-5), "peak_lr: -1e-05 must be positive"),
        (ScheduleConfig(min_lr_ratio=1.5), "min_lr_ratio: 1.5 must lie within 0 to 1; a learning rate never rises"),
        (ScheduleConfig(warmup=0.9), "warmup 0.9 \\+ decay 0.2 exceed 1"),
        (ScheduleConfig(name="infinite", warmup=0.5, cooldown=0.5), "warmup 0.5 \\+ cooldown 0.5 \\+ decay 0.2"),
        (ScheduleConfig(decay_shape="exponential", min_lr_ratio=0.0), "min_lr_ratio: 0 is never reached"),
        (ScheduleConfig(name="infinite", cooldown=0.0), "cooldown: 0 would make a jump"),
        (ScheduleConfig(name="inverse_sqrt", warmup=0.0), "warmup: inverse_sqrt falls"),
        (ScheduleConfig(name="cosine_restarts", cycles=0), "cycles: 0 must be at least 1"),
    ],
)
def test_a_wrong_schedule_is_named_with_its_fix(schedule, message):
    assert any(re.match(message, one) for one in schedule_problems(schedule)), schedule_problems(schedule)
