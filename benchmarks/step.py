"""A whole optimizer step of SmolLM2-135M on a CPU beside two peers: python benchmarks/step.py [--quick]

The same random weights of SmolLM2-135M's shape, the same tokens, fp32, two threads (--threads): forward, backward,
clipping and AdamW. Ours is the FSDP2 engine on one process, as `python launch/train.py kernels=auto` runs it; a row of
its own has the default, kernels=model. The peers are the Trainer of transformers and litgpt with its model and loss,
each with and without torch.compile; the goal stands at a peer's fastest settings. The processes of a pair take turns,
step by step, after a first step that isn't counted (compiling is not), and the median of the turns' ratios counts,
since a machine's speed drifts. Where a row holds several documents, the Trainer gets a dense mask that keeps them
apart; litgpt has none, so its loss is another one there, and the row says so.

Figures are by the clock and by the CPU (user and system, all threads; on a machine that others use too only the second
is a measure, with --threads 1, since threads that wait take CPU time); `ratio` above 1: ours is better. "share of the
fp32 GEMM peak" is 6 operations a parameter and token, and those of attention within documents, over the time and the
rate of torch.mm for the best of a step's shapes, measured in turns with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import peer_python  # noqa: E402
from benchmarks.step_jobs import CASES, LAYERS, MARK, SHAPE, make_model, operations  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "step.json"
LITGPT = "litgpt 0.5.13"
GOALS = dict(zip(CASES, (1.2, 2.0), strict=True))
SHARE_GOAL = 0.85
QUICK_LAYERS = 2
"""Layers of the model with --quick: enough for its layers to weigh, few enough for two minutes."""
FULL_LAYERS = SHAPE[LAYERS]
PEERS = {
    "trainer": {"trainer": "sdpa", "trainer+compile": "sdpa, compiled"},
    "litgpt": {"litgpt": "as it comes", "litgpt+compile": "compiled"},
    "default": {"ours+model": "kernels=model, the default"},
}
"""Who -> kind of a process -> its settings in words."""
KINDS = [kind for settings in PEERS.values() for kind in settings]
NAMES = {"trainer": "transformers Trainer", "litgpt": LITGPT, "default": "ours"}
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "DS_ACCELERATOR": "cpu",
}
CLOCKS = {"seconds": "tokens/s", "cpu_seconds": "tokens/CPU-s"}
Figures = dict[str, float]


class StoppedError(RuntimeError):
    """A process ended where a step of it was wanted; the message is its last line."""


class Job:
    """A process of step_jobs.py."""

    def __init__(self, kind: str, case: str, folder: Path, arguments: argparse.Namespace) -> None:
        python = str(peer_python(LITGPT, arguments.cache)) if kind.startswith("litgpt") else sys.executable
        script = str(Path(__file__).with_name("step_jobs.py"))
        self.kind = kind
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [python, script, kind, "--model", str(folder), "--case", case],
            env=ENVIRONMENT | {"OMP_NUM_THREADS": str(arguments.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def step(self) -> Figures:
        """Let it take a step; raises StoppedError."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: Figures = json.loads(line.removeprefix(MARK))
                return found
        self.errors.seek(0)
        raise StoppedError((self.errors.read().strip().splitlines() or ["no message"])[-1])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextlib.contextmanager
def both(kinds: tuple[str, str], *arguments: Any) -> Iterator[list[Job]]:
    """Two jobs, ended whatever happens."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for kind in kinds:
            jobs.append(Job(kind, *arguments))
            stack.callback(jobs[-1].close)
        yield jobs


class Comparison:
    """The model of `folder`, and the rows of the table."""

    def __init__(self, folder: Path, layers: int, arguments: argparse.Namespace) -> None:
        self.folder, self.layers, self.arguments = folder, layers, arguments
        self.rows: list[dict[str, Any]] = []
        if (arguments.only or arguments.peer) and arguments.out.exists():
            self.rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]

    def in_turns(self, peer: str, case: str) -> tuple[Figures, Figures, Figures] | None:
        """Medians of ours and of a peer, and of their turns' ratios; None, with the reason printed, if it can't run."""
        try:
            with both(("ours", peer), case, self.folder, self.arguments) as jobs:
                first = [job.step() for job in jobs]
                turns = []
                for number in range(self.arguments.repeat):
                    order = jobs[:: -1 if number % 2 else 1]
                    found = {job.kind: job.step() for job in order}
                    turns.append((found["ours"], found[peer]))
        except (StoppedError, RuntimeError) as error:
            print(f"{peer}, {case}: it can't run: {error}", file=sys.stderr)
            return None
        ours, other = (
            {clock: statistics.median(turn[who][clock] for turn in turns) for clock in CLOCKS} for who in (0, 1)
        )
        ratio = {clock: statistics.median(their[clock] / own[clock] for own, their in turns) for clock in CLOCKS}
        for figures, begin, who in ((ours, first[0], 0), (other, first[1], 1)):
            figures["bytes"] = turns[-1][who]["bytes"]
            figures["loss"] = begin.get("loss", 0.0)
        for who, figures in (("ours", ours), (peer, other)):
            times = (
                f"{figures['seconds']:9.4g} s {figures['cpu_seconds']:9.4g} CPU s {figures['bytes'] / 2**20:6.0f} MiB"
            )
            print(f"{who:16} {case:38} {times}  loss {figures['loss']:.5f}", flush=True)
        return ours, other, ratio

    def chosen(self, kinds: list[str]) -> list[str]:
        """Those among `kinds` that --peer asks for."""
        return [kind for kind in kinds if not self.arguments.peer or kind in self.arguments.peer]

    def compare(self, case: str) -> None:
        """Add the rows of a case."""
        rows, tokens, documents = CASES[case]
        for who, settings in PEERS.items():
            if self.arguments.quick and who == "default":
                continue
            kinds = self.chosen(list(settings)[: 1 if self.arguments.quick else None])
            found = {kind: result for kind in kinds if (result := self.in_turns(kind, case))}
            fastest = min(found, key=lambda kind: found[kind][2][self.arguments.clock], default="")
            for kind, (ours, peer, ratio) in found.items():
                same = who != "litgpt" or documents == 1
                # Trainer rounds the loss that it logs to four decimal places.
                if same and abs(peer["loss"] - ours["loss"]) > 1e-4 * ours["loss"]:
                    raise SystemExit(f"{case}: our loss is {ours['loss']}, that of {kind} {peer['loss']}")
                name = f"{NAMES[who]} ({settings[kind]}{'' if same else ', documents not kept apart'})"
                goal = GOALS[case] if kind == fastest and who != "default" else None
                for clock, unit in CLOCKS.items():
                    speeds = [rows * tokens / one[clock] for one in (ours, peer)]
                    self.add(f"optimizer step, {case}", unit, *speeds, ratio[clock], name, goal)
                memory = (ours["bytes"], peer["bytes"], peer["bytes"] / ours["bytes"])
                self.add(f"peak memory, {case}", "bytes", *memory, name, None)
        if self.chosen(["gemm"]) and (result := self.in_turns("gemm", case)):
            for clock, unit in (("seconds", "share"), ("cpu_seconds", "share of CPU time")):
                share = operations(case, self.layers) * result[2][clock]
                self.add(f"share of the fp32 GEMM peak, {case}", unit, share, 1.0, share, "torch.mm alone", SHARE_GOAL)

    def add(
        self, metric: str, unit: str, ours: float, peer: float, ratio: float, name: str, goal: float | None
    ) -> None:
        """One row."""
        metric += f", {self.layers} layers of {FULL_LAYERS}" if self.layers != FULL_LAYERS else ""
        row = {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": name, "ratio": ratio}
        of = ("metric", "unit", "peer_name")
        before = [one for one in self.rows if all(one[key] == row[key] for key in of)]
        if self.arguments.peer and before:  # which settings are a peer's fastest, one pair alone can't say
            goal = before[0].get("goal")
        row |= {} if goal is None else {"goal": goal}
        self.rows = [one for one in self.rows if one not in before] + [row]

    def show(self) -> None:
        """Print the table."""
        for one in self.rows:
            what = f"{one['metric']:66} {one['ours']:14.2f} {one['peer']:14.2f} {one['unit']:17}"
            print(f"{what} {one['ratio']:5.2f} (goal {one.get('goal', 'none')})  {one['peer_name']}")

    def write(self) -> None:
        """Keep the rows as JSON."""
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.out.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 layers, one turn, peers as they come")
    parser.add_argument("--repeat", type=int, default=None, help="turns of each pair, of which the median counts")
    parser.add_argument("--layers", type=int, default=None, help=f"layers of the model; {FULL_LAYERS} without --quick")
    parser.add_argument("--threads", type=int, default=2, help="of every process; 1 where others use the machine too")
    parser.add_argument("--only", choices=list(CASES), action="append", help="this case; rows of others stay")
    parser.add_argument("--peer", choices=[*KINDS, "gemm"], action="append", help="beside it; rows of others stay")
    parser.add_argument("--clock", choices=list(CLOCKS), default="seconds", help="which picks the fastest settings")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache" / "peers", help="peers' environments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.repeat = arguments.repeat or (1 if arguments.quick else 3)
    layers = arguments.layers or (QUICK_LAYERS if arguments.quick else FULL_LAYERS)
    with tempfile.TemporaryDirectory(prefix="step-benchmark-") as scratch:
        make_model(Path(scratch), layers)
        comparison = Comparison(Path(scratch), layers, arguments)
        for case in arguments.only or CASES:
            comparison.compare(case)
            comparison.write()  # what is measured is not lost where a later peer is stopped
        comparison.show()


if __name__ == "__main__":
    main()
