"""The kernels' own checks hold, and go red where a kernel is broken."""

import json

import pytest
from cpt_kernels import OPERATIONS, backends

from tests.helpers.kernel_mutations import MUTATIONS

WITH_KERNELS = [name for name in OPERATIONS if any(one.name == "triton" for one in backends(name))]


@pytest.fixture(scope="module")
def findings(interpreted, tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "findings.json"
    done = interpreted("cpt_kernels", "check", "--fast", "--json", path, mode=None)
    assert path.exists(), done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("operation", WITH_KERNELS)
def test_numbers_bounds_and_races_of_every_kernel_hold_in_the_interpreter(findings, operation):
    mine = [one for one in findings if one["operation"] == operation]
    assert {one["dtype"] for one in mine} == {"float32", "bfloat16", "float16"}
    assert {"accesses out of bounds", "racing addresses", "atomics"} <= {one["what"] for one in mine}
    assert [one for one in mine if not one["good"]] == []


@pytest.fixture(scope="module")
def seen(interpreted, tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "seen.json"
    done = interpreted("tests.helpers.kernel_mutations", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_seen(seen, name):
    assert MUTATIONS[name][3] in seen[name]


@pytest.mark.e2e
def test_the_large_cases_hold_too(interpreted):
    done = interpreted("cpt_kernels", "check", "--large")
    assert done.returncode == 0, done.stdout + done.stderr
