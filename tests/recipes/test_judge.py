"""A finding is reproduced, not reproduced or undecided by a rule that is fixed beforehand."""

import json

import pytest
from rich.console import Console
from rich.table import Table

from recipes.judge import NOT_REPRODUCED, REPRODUCED, UNDECIDED, Claim, conclude


@pytest.mark.parametrize(
    ("differences", "settings", "outcome"),
    [
        ((0.30, 0.32, 0.28), {}, REPRODUCED),
        ((-0.30, -0.32, -0.28), {}, NOT_REPRODUCED),
        ((0.30, -0.20, 0.10), {}, UNDECIDED),
        ((0.30, 0.32, 0.28), {"margin": 0.5}, NOT_REPRODUCED),
        ((0.30, 0.32, 0.28), {"margin": 0.3}, UNDECIDED),
        ((0.001, -0.002, 0.001), {"margin": 0.03, "equal": True}, REPRODUCED),
        ((0.10, 0.11, 0.12), {"margin": 0.03, "equal": True}, NOT_REPRODUCED),
        ((-0.10, -0.11, -0.12), {"margin": 0.03, "equal": True}, NOT_REPRODUCED),
        ((0.02, 0.04, 0.03), {"margin": 0.03, "equal": True}, UNDECIDED),
        ((5.0,), {}, UNDECIDED),
        ((float("nan"), 1.0, 1.0), {}, UNDECIDED),
    ],
)
def test_the_whole_interval_decides(differences, settings, outcome):
    assert Claim("", "", differences, **settings).outcome() == outcome


def test_the_interval_is_students_t_at_90_percent():
    low, high = Claim("", "", (1.0, 2.0, 3.0)).interval()
    assert (low, high) == pytest.approx((2 - 2.919986 / 3**0.5, 2 + 2.919986 / 3**0.5), abs=1e-3)


def test_what_is_printed_is_written(tmp_path):
    claims = [Claim("water is wet", "a source", (0.30, 0.32, 0.28)), Claim("it is not", "another", (-1.0, 1.0, 0.0))]
    console = Console(record=True, width=160)
    assert conclude("water", claims, Table(), {"steps": 3}, tmp_path / "new", console) == [REPRODUCED, UNDECIDED]
    record = json.loads((tmp_path / "new" / "water.json").read_text())
    assert [claim["outcome"] for claim in record["claims"]] == [REPRODUCED, UNDECIDED]
    assert (record["steps"], record["claims"][0]["differences"]) == (3, [0.30, 0.32, 0.28])
    assert "water is wet" in console.export_text()
