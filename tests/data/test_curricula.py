"""Promises of the curricula: the curves that they draw, and that no source and no row becomes unreachable."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import StageConfig
from cpt_dist.curriculum_config import CURRICULA, CurriculumConfig, curriculum_problems
from cpt_dist.data.curricula import COSINE_PIECES, nominal_shares, scheduled_mixture
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.mixture_knots import mixture_knots
from tests.helpers.memory_sources import order_of, stage

MIXTURE = {"easy": 0.4, "hard": 0.2, "general": 0.4}


def curve(curriculum, *progress, mixture=MIXTURE):
    """Source -> its share at each progress, rounded."""
    knots, shares = mixture_knots(scheduled_mixture(mixture, curriculum))
    columns = zip(*shares, strict=True)
    return {
        name: [round(float(np.interp(at, knots, column)), 4) for at in progress]
        for name, column in zip(mixture, columns, strict=True)
    }


def test_immediate_is_the_mixture():
    golden = {"easy": [0.4, 0.4], "hard": [0.2, 0.2], "general": [0.4, 0.4]}
    assert curve(CurriculumConfig(), 0, 1) == curve(None, 0, 1) == golden


def test_gradual_goes_straight_from_start_to_the_mixture_and_stays():
    chosen = CurriculumConfig("gradual", start={"general": 3, "easy": 1}, ramp=0.5)
    assert curve(chosen, 0, 0.25, 0.5, 1) == {
        "easy": [0.25, 0.325, 0.4, 0.4],
        "hard": [0, 0.1, 0.2, 0.2],
        "general": [0.75, 0.575, 0.4, 0.4],
    }


def test_staged_jumps_at_its_steps():
    chosen = CurriculumConfig("staged", steps=[[0.25, {"general": 1}], [0.5, {"easy": 1, "hard": 3}]])
    assert curve(chosen, 0, 0.2499, 0.2501, 0.4999, 0.5001, 1) == {
        "easy": [0.4, 0.4, 0, 0, 0.25, 0.25],
        "hard": [0.2, 0.2, 0, 0, 0.75, 0.75],
        "general": [0.4, 0.4, 1, 1, 0, 0],
    }


def test_quality_first_opens_the_best_bucket_first_and_ends_at_full_shares():
    mixture = {"best": 0.1, "good": 0.2, "rest": 0.3, "general": 0.4}
    chosen = CurriculumConfig("quality_first", buckets=["best", "good", "rest"], opening=0.8)
    assert curve(chosen, 0, 0.2, 0.4, 0.8, 1, mixture=mixture) == {
        "best": [0.6, 0.4, 0.2, 0.1, 0.1],
        "good": [0, 0.2, 0.4, 0.2, 0.2],
        "rest": [0, 0, 0, 0.3, 0.3],
        "general": [0.4] * 5,
    }


def test_difficulty_hands_over_around_the_share_of_what_came_before():
    # easy has 2/3 of the buckets' joint 0.6: the handover goes from progress 0.5667 to 0.7667
    chosen = CurriculumConfig("difficulty", buckets=["easy", "hard"], overlap=0.1, floor=0.0)
    assert curve(chosen, 0, 2 / 3 - 0.1, 2 / 3, 2 / 3 + 0.1, 1) == {
        "easy": [0.6, 0.6, 0.3, 0, 0],
        "hard": [0, 0, 0.3, 0.6, 0.6],
        "general": [0.4] * 5,
    }


def test_difficulty_without_overlap_is_a_step():
    chosen = CurriculumConfig("difficulty", buckets=["easy", "hard"], overlap=0.0, floor=0.25)
    assert curve(chosen, 0, 0.666, 0.667, 1) == {
        "easy": [0.55, 0.55, 0.1, 0.1],
        "hard": [0.05, 0.05, 0.5, 0.5],
        "general": [0.4] * 4,
    }


def test_warmup_and_cooldown_move_the_joint_share_of_the_domain():
    chosen = CurriculumConfig("warmup_cooldown", domain=["easy", "hard"], low=0.5, warmup=0.2, cooldown=0.4)
    assert curve(chosen, 0, 0.1, 0.2, 0.6, 0.8, 1) == {
        "easy": [0.2, 0.3, 0.4, 0.4, 0.3, 0.2],
        "hard": [0.1, 0.15, 0.2, 0.2, 0.15, 0.1],
        "general": [0.7, 0.55, 0.4, 0.4, 0.55, 0.7],
    }


def test_a_cosine_table_passes_its_points_and_their_middle():
    mixture = {"domain": [[0, 0.2], [0.5, 0.8], [1, 0.4]], "general": [[0, 0.8], [0.5, 0.2], [1, 0.6]]}
    chosen = CurriculumConfig("table", shape="cosine")
    assert curve(chosen, 0, 0.125, 0.25, 0.5, 0.75, 1, mixture=mixture)["domain"] == [0.2, 0.2879, 0.5, 0.8, 0.6, 0.4]


def test_lines_stand_for_a_cosine_as_closely_as_is_said():
    chosen = CurriculumConfig("gradual", start={"b": 1}, ramp=1.0, shape="cosine")
    knots, shares = mixture_knots(scheduled_mixture({"a": 1, "b": 0}, chosen))
    at = np.linspace(0, 1, 100_001)
    lines = np.interp(at, knots, [row[0] for row in shares])
    read = np.concatenate([[0], np.cumsum((lines[1:] + lines[:-1]) / 2 * np.diff(at))])
    assert np.abs(lines - (1 - np.cos(np.pi * at)) / 2).max() <= math.pi**2 / (16 * COSINE_PIECES**2) < 0.00061
    assert np.abs(read - (at - np.sin(np.pi * at) / np.pi) / 2).max() < 0.00013
    assert read[-1] == pytest.approx(0.5, abs=1e-12)


@st.composite
def curricula(draw):
    """A valid curriculum over five sources, and its mixture; "zero" has share 0."""
    names = list("abcd")
    mixture = {name: draw(st.floats(0.05, 3)) for name in names} | {"zero": 0.0}
    members = draw(st.permutations(names))[: draw(st.integers(2, 4))]
    some = st.dictionaries(st.sampled_from(names), st.floats(0.1, 2), min_size=1)
    part = st.just(0.0) | st.floats(1e-3, 0.5)
    name = draw(st.sampled_from(sorted(CURRICULA)))
    values = {
        "start": draw(some),
        "ramp": draw(st.floats(0.01, 1)),
        "shape": draw(st.sampled_from(["linear", "cosine"])),
        "steps": [[0.3, draw(some)], [0.7, draw(some)]],
        "buckets": members,
        "opening": draw(st.floats(0.01, 1)),
        "overlap": draw(part),
        "floor": draw(part),
        "domain": members[:2],
        "low": draw(st.floats(0, 1)),
        "warmup": draw(part),
        "cooldown": draw(part),
    }
    chosen = CurriculumConfig(name, **{field: values[field] for field in CURRICULA[name]})
    assert curriculum_problems(chosen, mixture) == []
    return mixture, chosen


@given(curricula())
@settings(max_examples=60, deadline=None)
def test_every_source_with_a_share_reaches_a_positive_one_and_the_others_stay_at_zero(case):
    mixture, chosen = case
    total = nominal_shares(mixture, chosen)
    named = {name for _, shares in chosen.steps for name in shares} | set(chosen.start)
    assert total["zero"] == 0
    assert all(total[name] > 0 for name in mixture if mixture[name] > 0 or name in named)
    assert sum(total.values()) == pytest.approx(1)


@given(curricula(), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_row_is_read_before_any_is_read_twice(case, seed):
    """So unseen rows are 0 wherever the stage asks a source for as many samples as it has rows."""
    mixture, chosen = case
    sizes = {"a": 40, "b": 7, "c": 90, "d": 21, "zero": 5}
    plan = stage(400, mixture)
    order = order_of([StagePlan(plan.name, 400, 8, 4, mixture, curriculum_of(chosen))], sizes, seed)
    samples = order.samples(0, 400)
    for number, name in enumerate(order.source_names):
        rows = samples.row[samples.source == number]
        assert len(set(rows.tolist())) == min(len(rows), sizes[name])


def curriculum_of(chosen):
    config = StageConfig(tokens="8", seq_len=8, batch_tokens="8", mixture={"a": 1}, curriculum=chosen)
    return StagePlan.from_config(config).curriculum


@given(curricula().filter(lambda case: case[1].name == "difficulty"))
@settings(max_examples=25, deadline=None)
def test_difficulty_changes_the_order_of_the_rows_and_not_which_are_read(case):
    mixture, chosen = case
    sizes = dict.fromkeys(mixture, 1000)
    plain = order_of([stage(400, mixture)], sizes)
    ordered = order_of([StagePlan("main", 400, 8, 4, mixture, curriculum_of(chosen))], sizes)
    bound = plain.error_bound(0) + ordered.error_bound(0)
    for number, name in enumerate(ordered.source_names):
        read = [
            set(samples.row[samples.source == number].tolist())
            for samples in (plain.samples(0, 400), ordered.samples(0, 400))
        ]
        fewer, more = sorted(read, key=len)
        assert fewer <= more, name
        # the ends of handovers fall between samples, which costs up to a sample for each knot
        assert len(more) - len(fewer) <= bound + 2 * len(mixture)


@given(curricula())
@settings(max_examples=20, deadline=None)
def test_quotas_under_a_curriculum_keep_to_their_targets(case):
    mixture, chosen = case
    order = order_of([StagePlan("main", 300, 8, 4, mixture, curriculum_of(chosen))], dict.fromkeys(mixture, 50))
    for n in range(0, 301, 3):
        assert np.abs(order.counts(n) - order.planned_samples(n)).max() <= order.error_bound(0) + 1e-9


def test_the_state_of_a_curriculum_is_small_and_its_change_is_named():
    chosen = CurriculumConfig("gradual", start={"b": 1.0}, ramp=0.5, shape="cosine")
    sizes = {"a": 9, "b": 9}
    order = order_of([StagePlan("main", 80, 8, 4, {"a": 1, "b": 2}, curriculum_of(chosen))], sizes)
    state = order.state(40)
    assert len(str(state)) < 300
    assert order.check(state) == 40
    chosen.ramp = 0.25
    other = order_of([StagePlan("main", 80, 8, 4, {"a": 1, "b": 2}, curriculum_of(chosen))], sizes)
    with pytest.raises(Exception, match=r"stage 'main' curriculum.ramp was 0.5 and is 0.25; set it back"):
        other.check(state, order.identity)
    with pytest.raises(Exception, match=r"curriculum.name was gradual and is None"):
        order_of([stage(80, {"a": 1, "b": 2})], sizes).check(state, order.identity)


def test_an_immediate_curriculum_reads_what_the_plain_mixture_reads():
    plain = order_of([stage(80, {"a": 0.25, "b": 0.75})], {"a": 9, "b": 30})
    immediate = order_of(
        [StagePlan("main", 80, 8, 4, {"a": 0.25, "b": 0.75}, {"name": "immediate"})], {"a": 9, "b": 30}
    )
    assert [plain.sample(n) for n in range(80)] == [immediate.sample(n) for n in range(80)]


def test_the_order_under_a_curriculum_is_that_of_earlier_versions():
    chosen = CurriculumConfig("quality_first", buckets=["easy", "hard"], opening=0.5)
    sizes = {"easy": 60, "hard": 50, "general": 90}
    order = order_of([StagePlan("main", 200, 8, 4, MIXTURE, curriculum_of(chosen))], sizes, seed=3)
    assert [order.sample(n) for n in (0, 1, 2, 100, 199)] == GOLDEN


GOLDEN = [("easy", 30, 0), ("general", 23, 0), ("easy", 8, 0), ("general", 62, 0), ("general", 82, 0)]
