"""Gold items that occur in the training data decide nothing, in the probe and in the verdict."""

from pathlib import Path

import numpy as np
import pytest

from cpt_dist.evaluation.claims import answers, decide
from cpt_dist.evaluation.probe_claims import probe_claims
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.verdict import WithLeaked
from cpt_dist.evaluation.verdict_leaks import leak_notes, leaked_records
from cpt_dist.files import write_json
from cpt_dist.probe.arms import Arm, ArmScores, Scores
from cpt_dist.probe.compare import compared
from tests.probe.small import configured

ITEMS, FOUND = 200, 40
JUDGE = Judge(0.95, 500, 0)


def arm(name, right):
    """An arm of three seeds that is right about the first `right` items."""
    values = (np.arange(ITEMS) < right).astype(float)
    scores = Scores([str(place) for place in range(ITEMS)], values, 0.25, None, None)
    return ArmScores(Arm(name, name, Path(name), False, name), scores, dict.fromkeys(range(3), scores))


def test_a_gain_on_found_items_alone_is_none():
    base, adapted = arm("base", 0), arm("adapted", FOUND)
    assert compared(base, adapted, JUDGE, 0.03).outcome == "improved"
    clean = compared(base, adapted, JUDGE, 0.03, range(FOUND))
    assert (clean.repeated.value, clean.outcome) == (0.0, "kept")
    assert clean.with_found.value == FOUND / ITEMS
    assert [seed.gain.value for seed in clean.seeds] == [0.0] * 3


def test_with_every_item_found_nothing_is_decided():
    found = compared(arm("base", 0), arm("adapted", FOUND), JUDGE, 0.03, range(ITEMS))
    assert (found.outcome, found.repeated.value) == ("undecided", FOUND / ITEMS)


@pytest.mark.parametrize(("found", "word", "items"), [(0, "helped", ITEMS), (FOUND, "undecided", ITEMS - FOUND)])
def test_a_claim_rests_on_the_others(tmp_path, found, word, items):
    base, adapted = (np.stack([arm(name, right).seeds[0].values] * 3) for name, right in (("a", 0), ("b", FOUND)))
    record = {"format": "cpt_dist.probe/1", "probe": "gold", "margin": 0.03, "arms": [], "unchecked": 1}
    scores = {"base": base.tolist(), "adapted": adapted.tolist()}
    write_json(tmp_path / "probe.json", record | {"scores": scores, "found": list(range(found))})
    config = configured(tmp_path, tmp_path)
    config.verdict.probe, config.verdict.goals = str(tmp_path), ["gold"]
    claims = probe_claims(config, {})
    decided, over_all = (answers(one, 0.95, 500, 0) for one in (claims.claims, claims.with_leaked))
    assert (decide(decided).word, decided[0].items, over_all[0].status) == (word, items, "shown")

    leaked = WithLeaked(over_all, None, claims.leaked, claims.unchecked)
    (row,) = leaked_records(decided, leaked)
    assert (row["found"], row["unchecked"], row["status_with"]) == (found, 1, "shown")
    notes = leak_notes([{"name": "gold (probe)", "leaked": row}], leaked)
    assert any(f"{FOUND} of {ITEMS} items occur" in line for line in notes) == bool(found)
    assert not any("Not searched" in line for line in notes)
