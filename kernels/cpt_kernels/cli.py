"""The commands of `python -m cpt_kernels`. Exit code 0: all is well; 1: a check failed; 2: it cannot run here."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import typing
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cpt_kernels import OPERATIONS
from cpt_kernels.roofline import bounds_text
from cpt_kernels.table import table_text
from cpt_kernels.triton_support import interpreting
from cpt_kernels.verify.builds import BUILDS, FAST, TARGETS


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments on one line."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help tells what there is\n")


def main(arguments: Sequence[str]) -> int:
    """Run a command; gives the exit code."""
    parser = _Parser(prog="python -m cpt_kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="every operation: backends, which can run here and why not the others")
    check = commands.add_parser("check", help="numbers, races and bounds in Triton's interpreter, without a GPU")
    check.add_argument("--operation", choices=OPERATIONS, help="only this one")
    size = check.add_mutually_exclusive_group()
    size.add_argument("--fast", dest="large", action="store_false", default=None, help="without the large cases")
    size.add_argument("--large", action="store_true", default=None, help="only the large cases")
    check.add_argument("--json", type=Path, help="also write every finding to this file")
    compile_ = commands.add_parser("compile", help="ahead of time, without a GPU: registers, spills, shared memory")
    compile_.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    compile_.add_argument("--kernel", help="only kernels whose name contains this")
    compile_.add_argument("--fast", action="store_true", help="only a few kernels, for sm_90 and gfx942")
    compile_.add_argument("--update", action="store_true", help="keep these figures instead of comparing with the kept")
    tune = commands.add_parser("tune", help="on a GPU: measures launch settings and writes its rows of the table")
    tune.add_argument("--kernel", help="only kernels whose name contains this")
    commands.add_parser("bounds", help="least time of each operation by the data sheets of three GPUs; not measured")
    given = parser.parse_args(arguments)
    if given.command in ("table", "bounds"):
        print(table_text() if given.command == "table" else bounds_text())
        return 0
    return {"check": _check, "compile": _compile, "tune": _tune}[given.command](given)


def _check(given: argparse.Namespace) -> int:
    if not interpreting():
        # Which mode a kernel has is settled when it is imported, so the checks get a process of their own.
        words = [sys.executable, "-m", "cpt_kernels", *sys.argv[1:]]
        return subprocess.run(words, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode
    from cpt_kernels.verify.suite import check

    start = time.perf_counter()
    with np.errstate(all="ignore"):
        findings = list(check(given.operation, given.large))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) | {"good": one.good} for one in findings], indent=1))
    bad = [one for one in findings if not one.good]
    for one in bad:
        print(f"{one.operation} ({one.case}, {one.dtype}): {one.what} is {one.value:.3g}, at most {one.limit:.3g}")
    seconds = time.perf_counter() - start
    print(f"{len(findings) - len(bad)} of {len(findings)} checks hold in Triton's interpreter ({seconds:.0f} s)")
    return 1 if bad else 0


def _compile(given: argparse.Namespace) -> int:
    if interpreting():
        print("TRITON_INTERPRET=1 is set, so kernels are interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    from cpt_kernels.verify import ahead_of_time as ahead

    builds = [one for one in BUILDS if not given.kernel or given.kernel in one.kernel]
    targets = given.target or list(TARGETS)
    if given.fast:
        builds, targets = [one for one in builds if one.label in FAST], ["sm_90", "gfx942"]
    kept = {} if given.update else ahead.kept_figures()
    if not kept and not given.update:
        print("figures.json has none of this version of Triton: nothing to compare with, only limits are checked")
    print("| kernel | target | registers | spilled bytes | shared bytes | matrix instructions |")
    print("|---|---|---|---|---|---|")
    start, wrong, figures = time.perf_counter(), [], {}
    for build, target, found in ahead.compile_all(builds, targets):
        name = ahead.key(build, target)
        figures[name] = found
        wrong += ahead.problems(build, target, found, kept.get(name))
        counts = (found.registers, found.spilled_bytes, found.shared_bytes, found.matrix_instructions)
        print(f"| {build.label} | {target} | {' | '.join(map(str, counts))} |", flush=True)
    for line in wrong:
        print(line)
    if given.update:
        known = [ahead.key(build, target) for build in BUILDS for target in TARGETS]
        all_figures = {**ahead.kept_figures(), **figures}
        ahead.write_figures({name: all_figures[name] for name in known if name in all_figures})
    print(f"{len(figures)} kernels compiled in {time.perf_counter() - start:.0f} s; {len(wrong)} problems")
    return 1 if wrong else 0


def _tune(given: argparse.Namespace) -> int:
    from cpt_kernels.tune import tune, why_not

    reason = why_not()
    if reason is not None:
        print(f"tune: {reason}", file=sys.stderr)
        return 2
    return tune(given.kernel)
