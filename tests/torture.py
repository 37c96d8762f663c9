"""kill -9 at random moments of small runs, again and again: python -m tests.torture [kills=100] [seed=N]

Each trial trains a tiny model on two processes, kills one of them or both, looks at what is on disk, and starts the job
again, sometimes to be killed once more. Every checkpoint must equal the uninterrupted run's of its step, bit by bit,
the last one above all; none that was reported may be lost, and what stays in the end is what the rules keep. Most kills
strike between two system calls of a save, a prune or a rename, the others at any time. Processes are forked from this
one after the imports, which takes seconds off each start. It is no test of the launchers.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed  # noqa: F401 - imported once here, and not by each forked rank
import torch
from omegaconf import OmegaConf

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine import distributed
from cpt_dist.training import setup, trainer
from tests.helpers import tiny_run
from tests.helpers.forked import fork, wait, was_killed

RANKS = 2
STEPS = 8
CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open")
"""Functions of `os` at which a process may die: those of writing, renaming and removing."""
RENAMES = ("replace", "rename")
"""Those by which a file or a checkpoint comes into being or goes; kills favour the moments around them."""


@dataclass(frozen=True)
class Kill:
    """When and whom: before the `at`-th call among `CALLS` of a rank, or `at` seconds after the start."""

    how: str
    at: float
    rank: int
    everyone: bool

    def __str__(self) -> str:
        whom = "all ranks" if self.everyone else f"rank {self.rank}"
        when = f"at call {self.at:.0f} of rank {self.rank}" if self.how == "call" else f"after {self.at:.2f} s"
        return f"{whom} {when}"


def variants(folder: Path) -> dict[str, dict]:
    """Name -> configuration: both engines, saves behind and in front of training."""
    base = tiny_run.build(folder, num_hidden_layers=1)
    base["stages"][0]["tokens"] = str(256 * STEPS)
    base["evaluation"] |= {"during_training": True, "every_steps": 2, "max_tokens": "64", "bootstrap": 100}
    keep = {"every_steps": 1, "keep_last": 1, "keep_every": 3, "keep_best": 1}
    made = {}
    for engine in ("fsdp", "zero"):
        for asynchronous in (True, False):
            config = copy.deepcopy(base)
            config["engine"] |= {"name": engine, "timeout_seconds": 30}
            config["checkpoint"] = keep | {"asynchronous": asynchronous}
            made[f"{engine} {'behind' if asynchronous else 'in front of'} training"] = config
    return made


def work(config: dict, rank: int, kill: Kill | None, count_to: Path | None) -> None:
    """The whole life of a rank, up to its last checkpoint."""
    calls = count_calls(kill if kill and kill.how == "call" and kill.rank == rank else None)
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config))
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=30))
    trainer.fit(setup.set_up(typed, world))
    distributed.stop()
    if count_to:
        (count_to / f"calls-{rank}").write_text(json.dumps(calls))


def count_calls(kill: Kill | None) -> list[str]:
    """List the calls among `CALLS` from here on, and die before the one whose number `kill` names."""
    made: list[str] = []

    def counted(name, function):
        def call(*arguments, **keywords):
            made.append(name)
            if kill and len(made) == kill.at:
                os.kill(0 if kill.everyone else os.getpid(), signal.SIGKILL)  # 0: the process group of the job
            return function(*arguments, **keywords)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return made


def start(config: dict, kill: Kill | None, log: Path, count_to: Path | None = None) -> list[int]:
    """Fork the ranks into a process group of their own; returns their process ids."""
    return fork(RANKS, log, lambda rank: work(config, rank, kill, count_to))


def finish(ranks: list[int], kill: Kill | None) -> bool:
    """Wait for all ranks, killing when it is time; returns whether any was killed."""
    begin = time.monotonic()
    if kill is None or kill.how != "time":
        return any(map(was_killed, wait(ranks)))
    victims = ranks if kill.everyone else [ranks[kill.rank]]
    return any(map(was_killed, wait(ranks, lambda: time.monotonic() - begin >= kill.at, victims)))


def tensors(store: CheckpointStore, step: int) -> dict[str, torch.Tensor]:
    reader = SafeReader(store.path(step) / "state")
    return {name: reader.tensor(name) for name in sorted(reader.tensor_shapes())}


def trainer_state(store: CheckpointStore, step: int) -> dict:
    """What `trainer.json` and the manifest say of a step, without the time that it took."""
    state = store.trainer(step)
    del state["totals"]["seconds"]
    return state | {"bits_per_byte": store.manifest(step).get("bits_per_byte")}


def reported(run_dir: Path) -> int:
    """The newest step whose checkpoint metrics.jsonl reports; 0 where there is none."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}\n")]
    return max((record["step"] for record in records if record["kind"] == "checkpoint"), default=0)


def check(run_dir: Path, reference: Path) -> list[int]:
    """The whole checkpoints of a run, each equal to the uninterrupted run's of its step; AssertionError otherwise."""
    store, right = CheckpointStore(run_dir / "checkpoints"), CheckpointStore(reference / "checkpoints")
    whole = store.steps()
    folders = [path.name for path in store.folder.glob("step-*")] if store.folder.is_dir() else []
    assert sorted(folders) == [store.path(step).name for step in whole], "a folder under a final name has no manifest"
    for step in whole:
        assert store.problems(step) == [], "a checkpoint under its final name is damaged"
        found, expected = tensors(store, step), tensors(right, step)
        assert found.keys() == expected.keys(), f"checkpoint {step} verifies but holds other tensors"
        wrong = [name for name, tensor in expected.items() if not tensor.equal(found[name])]
        assert wrong == [], f"checkpoint {step} verifies but is wrong: {wrong}"
        found, expected = trainer_state(store, step), trainer_state(right, step)
        wrong = [f"{key} {found.get(key)}, not {value}" for key, value in expected.items() if found.get(key) != value]
        assert wrong == [], f"checkpoint {step} verifies but is wrong: {wrong}"
        assert store.probe(step).logits.equal(right.probe(step).logits), f"checkpoint {step} has another probe"
    promised = reported(run_dir)
    assert max(whole, default=0) >= promised, f"the checkpoint of step {promised} was reported and is gone: {whole}"
    return whole


class Torture:
    """The uninterrupted runs, made once, and the trials against them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.variants = variants(folder)
        self.calls: dict[str, list[list[str]]] = {}
        """Variant -> rank -> the calls of a whole run, in their order."""
        self.kept: dict[str, list[int]] = {}
        """Variant -> the steps whose checkpoints an uninterrupted run keeps."""
        self.seconds: dict[str, float] = {}
        self.killed = Counter()

    def reference(self, name: str) -> Path:
        """The uninterrupted run of a variant's engine, with every checkpoint kept, each saved in front of training.

        The calls, the time and the kept steps of the variant itself are measured once beside it.
        """
        run_dir = self.folder / name.split()[0]
        if not run_dir.exists():
            config = copy.deepcopy(self.variants[name]) | {"run_dir": str(run_dir)}
            config["checkpoint"] |= {"keep_last": 0, "asynchronous": False}
            self.whole_run(config, run_dir / "log")
        if name not in self.calls:
            measured = self.folder / f"{name}, measured"
            measured.mkdir()
            begin = time.monotonic()
            config = copy.deepcopy(self.variants[name]) | {"run_dir": str(measured)}
            self.whole_run(config, measured / "log", count_to=measured)
            self.seconds[name] = time.monotonic() - begin
            self.calls[name] = [json.loads((measured / f"calls-{rank}").read_text()) for rank in range(RANKS)]
            self.kept[name] = check(measured, run_dir)
        return run_dir

    @staticmethod
    def whole_run(config: dict, log: Path, count_to: Path | None = None) -> None:
        """One start of a job that nobody kills: it has to reach its end."""
        log.parent.mkdir(parents=True, exist_ok=True)
        finish(start(config, None, log, count_to), None)
        last = CheckpointStore(Path(config["run_dir"]) / "checkpoints").steps()[-1:]
        assert last == [STEPS], f"the job ended at {last}:\n{log.read_text()[-4000:]}"

    def choose(self, name: str) -> Kill:
        rank, everyone = self.random.randrange(RANKS), self.random.random() < 0.5
        if self.random.random() < 0.75:
            # Only rank 0 makes and removes names, so most of its calls are those of commits and prunes.
            rank = 0 if self.random.random() < 0.8 else rank
            calls = self.calls[name][rank]
            numbers = [*range(1, len(calls) + 1)]
            around = [number for number in numbers if {calls[number - 1], calls[number - 2]} & {*RENAMES}]
            if around and self.random.random() < 0.7:  # at a rename, or at the call after it
                numbers = around
            return Kill("call", self.random.choice(numbers), rank, everyone)
        return Kill("time", self.random.uniform(0.2, 1.0) * self.seconds[name], rank, everyone)

    def trial(self, number: int) -> str:
        """Train, kill, look, go on, compare; returns what happened, or nothing where the run was over before the kill.

        Raises AssertionError where a promise is broken.
        """
        name = self.random.choice(sorted(self.variants))
        reference = self.reference(name)
        kill = self.choose(name)
        run_dir = self.folder / f"trial-{number}"
        config = copy.deepcopy(self.variants[name]) | {"run_dir": str(run_dir)}
        try:
            run_dir.mkdir()
            if not finish(start(config, kill, run_dir / "log"), kill):
                shutil.rmtree(run_dir)
                return ""
            self._count(kill)
            whole = check(run_dir, reference)
            again = self.choose(name) if self.random.random() < 0.3 else None
            if again and finish(start(config, again, run_dir / "log"), again):
                self._count(again)
                whole = check(run_dir, reference)
            else:
                again = None
            self.whole_run(config, run_dir / "log")
            left = check(run_dir, reference)
            assert left == self.kept[name], f"{left} stay, but of an uninterrupted run {self.kept[name]}"
            left = [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
            assert left == [], f"left behind: {left}"
        except AssertionError as error:
            raise AssertionError(f"trial {number}, {name}, {kill}: {error}; see {run_dir}") from error
        shutil.rmtree(run_dir)
        twice = f", and once more, {again}" if again else ""
        return f"{name}: killed {kill}{twice}; whole checkpoints then: {whole or 'none'}"

    def _count(self, kill: Kill) -> None:
        self.killed["all ranks" if kill.everyone else "one rank"] += 1


def main(words: list[str]) -> None:
    """Run the trials that the words ask for and print each."""
    given = dict(word.split("=", 1) for word in words)
    seed = int(given.get("seed", random.SystemRandom().randrange(1 << 32)))
    kills = int(given.get("kills", 100))
    print(f"torture: kills={kills} seed={seed}", flush=True)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))  # kept where a trial fails
    torture, begin, number = Torture(folder, seed), time.monotonic(), 0
    while torture.killed.total() < kills:
        number += 1
        if happened := torture.trial(number):
            print(f"{torture.killed.total():4} {happened}", flush=True)
    shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "kills": torture.killed.total(),
                "seed": seed,
                "seconds": round(time.monotonic() - begin),
                **torture.killed,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
