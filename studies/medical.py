"""Does continued pretraining on the Gene Ontology help, and what does replay do? python -m studies.medical [--quick]

A small Llama is pretrained on general text (WordNet glosses and presidents' addresses) by this project, then trained on
with 0, 10 and 25% replay, and on replay alone for as many tokens. All of it is done by the programs under launch/, as a
user would type it; the claims are those of configs/experiment/medical.yaml, declared before anything was measured. The
arm with 10% replay is the main one: it alone is averaged with the base, probed and compared with the control arm.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_dist.cli import user_mistakes
from studies.report import write_report
from studies.steps import ROOT, Steps, words_of

ARMS = {"replay_00": 0.0, "replay_10": 0.1, "replay_25": 0.25, "control": 1.0}
"""Arm -> share of general text."""
MAIN, CONTROL = "replay_10", "control"
BASE_PEAK = 3e-3
"""Peak learning rate of the base; the arms' is a third of it."""
SUITES = ("go_mc", "wordnet_mc", "cloze")


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    vocabulary: int
    hidden: int
    layers: int
    base_tokens: int
    arm_tokens: int
    items: int
    examples: int
    every: int
    """Every so-many-th document is used."""
    held_out_tokens: int
    epochs: float


WHOLE = Size(4096, 192, 6, 2_097_152, 393_216, 400, 300, 1, 24_000, 3.0)
QUICK = Size(512, 32, 1, 8_192, 4_096, 12, 24, 60, 2_000, 1.0)


class Study:
    """The steps of the study, in `out`."""

    def __init__(self, size: Size, out: Path, packages: Path, processes: int) -> None:
        self.size, self.out, self.packages, self.processes = size, out, packages, processes
        self.steps = Steps(out)
        corpora = out / "corpora"
        self.common = ["experiment=medical", f"data.shards={out / 'shards'}"]
        self.common += [f"data.sources.{name}.raw=[{corpora / f'{name}.jsonl'}]" for name in ("go", "wordnet", "sotu")]
        self.common += [f"data.tokenizer={self.begin}", f"evaluation.max_tokens={size.held_out_tokens}"]

    @property
    def begin(self) -> Path:
        """Folder of the model with random weights."""
        return self.out / "begin"

    def model(self, arm: str) -> Path:
        """Folder of an arm's model."""
        return self.out / arm / "model"

    def run(self) -> None:
        """All steps; those that are done are left out."""
        self.material()
        self.train("base", self.begin, self.size.base_tokens, 1.0, {"schedule.peak_lr": BASE_PEAK})
        for arm, replay in ARMS.items():
            self.train(arm, self.model("base"), self.size.arm_tokens, replay, {"seed": 1})
        suites = [str(self.out / "tasks" / f"{name}.yaml") for name in SUITES]
        asked = [f"suites.run=[{','.join(suites)}]"]
        for arm in ARMS:
            if arm != CONTROL:
                self.steps.launch(f"evaluate-{arm}", "evaluate.py", *self.compared(arm), *asked)
        self.probe()
        for arm in ARMS:
            if arm != CONTROL:
                more = [f"control={self.model(CONTROL)}"]
                if arm == MAIN:
                    more += ["averages=[0.25,0.5,0.75]", f"probe={self.out / 'probe'}"]
                else:
                    more += ["goals=[go_mc]"]
                self.steps.launch(f"verdict-{arm}", "verdict.py", *self.compared(arm), *asked, *more)

    def material(self) -> None:
        """Corpora, tasks, the model to begin with, and shards."""
        from studies import beginning, corpora, tasks

        size, folder = self.size, self.out / "corpora"
        self.steps.once("fetch", "download the packages of studies/packages.txt", lambda: corpora.fetch(self.packages))
        self.steps.once(
            "corpora",
            f"write every {size.every}. document of the corpora",
            lambda: corpora.write_corpora(folder, self.packages, size.every),
        )
        self.steps.once(
            "tasks",
            f"write {size.items} items of each task and {size.examples} examples",
            lambda: tasks.write_tasks(
                self.out / "tasks",
                corpora.read_terms(self.packages),
                corpora.read_glosses(self.packages),
                size.items,
                size.examples,
            ),
        )
        general = [folder / "wordnet.jsonl", folder / "sotu.jsonl"]
        shape = (size.vocabulary, size.hidden, size.layers)
        self.steps.once(
            "begin",
            f"a tokenizer of {shape[0]} tokens and random weights: {shape[2]} layers of {shape[1]}",
            lambda: beginning.write_beginning(self.begin, general, *shape),
        )
        self.steps.launch("prepare", "prepare.py", *self.common, f"model.path={self.begin}")

    def train(self, arm: str, start: Path, tokens: int, replay: float, settings: dict[str, float | int]) -> None:
        """Train and consolidate one model, on this share of general text."""
        run_dir = f"run_dir={self.out / arm}"
        mixture = {"go": 1 - replay, "wordnet": replay / 2, "sotu": replay / 2}
        stage = {"stages.0.tokens": tokens, "stages.0.mixture": mixture}
        words = [*self.common, run_dir, f"model.path={start}", *words_of(settings | stage)]
        self.steps.launch(f"train-{arm}", "train.py", *words, processes=self.processes)
        self.steps.launch(f"consolidate-{arm}", "consolidate.py", run_dir)

    def compared(self, arm: str) -> list[str]:
        """The words that name base and `arm`."""
        base, model = self.model("base"), self.model(arm)
        return [*self.common, f"run_dir={self.out / arm}", f"model.path={base}", f"base={base}", f"adapted={model}"]

    def probe(self) -> None:
        """Fine-tune base, main arm and control arm."""
        tasks = self.out / "tasks"
        words = [f"data={tasks / 'aspect_train.jsonl'}", f"gold={tasks / 'aspect.yaml'}", f"out={self.out / 'probe'}"]
        words += [f"control={self.model(CONTROL)}", f"epochs={self.size.epochs}"]
        self.steps.launch("probe", "probe.py", *self.compared(MAIN), *words)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing of the study and write its report."""
    parser = argparse.ArgumentParser(prog="python -m studies.medical", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of everything; default: runs/studies/medical")
    parser.add_argument("--report", type=Path, help="folder of the report; default: docs/studies, --quick: the other")
    parser.add_argument("--packages", type=Path, default=Path("runs/cache/packages"), help="folder of the downloads")
    parser.add_argument("--processes", type=int, default=2, help="processes that train (0: one with all threads)")
    parser.add_argument("--quick", action="store_true", help="a model that learns nothing: shows that it runs")
    parser.add_argument("--fresh", action="store_true", help="remove --out first")
    given = parser.parse_args(words)
    out = given.out or Path("runs/studies/medical-quick" if given.quick else "runs/studies/medical")
    if given.fresh:
        shutil.rmtree(out, ignore_errors=True)
    with user_mistakes():
        study = Study(QUICK if given.quick else WHOLE, out, given.packages, given.processes)
        study.run()
        report = given.report or (out if given.quick else ROOT / "docs" / "studies")
        write_report(study, report)
    print(f"report: {report / 'medical.md'} (and .json, .svg)")


if __name__ == "__main__":
    main(sys.argv[1:])
