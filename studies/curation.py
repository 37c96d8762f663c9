"""Curates five corpora and keeps the report: python -m studies.curation [--every N]

The Gene Ontology and texts of licences are the domain, WordNet glosses, presidents' addresses and code the replay; the
items of the medical study's tasks are what nothing may repeat. All of it is done by launch/prepare.py with
configs/experiment/curation.yaml, as a user would type it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_dist.cli import user_mistakes
from cpt_dist.files import atomic_write, write_json
from cpt_dist.planning.curation_page import render_markdown, shown_scores
from studies.report import read
from studies.steps import ROOT, Steps

CORPORA = ("go", "licences", "wordnet", "sotu", "code")
VOCABULARY = 4096
ITEMS, EXAMPLES = 400, 300
SAMPLES_KEPT = 2
"""Samples of each reason that the report in the repository has."""


def run(out: Path, packages: Path, every: int) -> Steps:
    """Corpora, items, tokenizer, curated shards and their report, in `out`; what is done is left out."""
    from studies import beginning, corpora, curation_corpora, tasks

    steps, folder = Steps(out), out / "corpora"
    steps.once("fetch", "download the packages", lambda: curation_corpora.fetch_all(packages))
    steps.once(
        "corpora",
        f"write every {every}. document of the corpora",
        lambda: curation_corpora.write_all(folder, packages, every),
    )
    steps.once(
        "items",
        f"write {ITEMS} items of each task",
        lambda: tasks.write_tasks(
            out / "tasks", corpora.read_terms(packages), corpora.read_glosses(packages), ITEMS, EXAMPLES
        ),
    )
    general = [folder / "wordnet.jsonl", folder / "sotu.jsonl"]
    steps.once(
        "tokenizer",
        f"a tokenizer of {VOCABULARY} tokens",
        lambda: beginning.write_beginning(out / "begin", general, VOCABULARY, 32, 1),
    )
    words = ["experiment=curation", f"data.shards={out / 'shards'}", f"data.tokenizer={out / 'begin'}"]
    words += [f"data.sources.{name}.raw=[{folder / f'{name}.jsonl'}]" for name in CORPORA]
    items = ",".join(str(out / "tasks" / f"{name}.jsonl") for name in ("go_mc", "wordnet_mc", "cloze"))
    words += [f"data.curation.decontamination.files=[{items}]"]
    steps.launch("prepare", "prepare.py", *words)
    steps.launch("report", "prepare.py", *words, "what=report", f"prepare.out={out / 'report'}")
    return steps


def excerpt(record: dict[str, Any]) -> dict[str, Any]:
    """The record with few samples and the scores that are shown, so that it can be kept with the code."""
    for source in record["sources"].values():
        source["scores"] = {name: source["scores"][name] for name in shown_scores(source["scores"])}
        for part in (*source["reasons"], source["removed"]):
            part["samples"] = part["samples"][:SAMPLES_KEPT]
    return record


def write_report(steps: Steps, folder: Path, every: int) -> None:
    """Write curation.md and curation.json into `folder`, from what prepare reported."""
    record = excerpt(read(steps.out / "report" / "report.json"))
    seconds = {name: round(value, 1) for name, value in steps.seconds.items()}
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    title, _, rest = render_markdown(record).partition("\n")
    about = (
        f"{title}\n\nMade by `python -m studies.curation{'' if every == 1 else f' --every {every}'}` "
        f"([docs/curation.md](../curation.md#an-example)) with {len(os.sched_getaffinity(0))} cores: {times}. "
        "What prepare was asked for:\n\n"
        f"```sh\n{steps.commands['report']}\n```\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "curation.json", record | {"seconds": seconds})
    with atomic_write(folder / "curation.md", "w") as handle:
        handle.write(about + rest)


def main(words: Sequence[str] | None = None) -> None:
    """Do what is missing and write the report."""
    parser = argparse.ArgumentParser(prog="python -m studies.curation", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of everything; default: runs/studies/curation")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "studies", help="folder of the report")
    parser.add_argument("--packages", type=Path, default=Path("runs/cache/packages"), help="folder of the downloads")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th document, of code two packages")
    parser.add_argument("--fresh", action="store_true", help="remove --out first")
    given = parser.parse_args(words)
    out = given.out or Path("runs/studies/curation" if given.every == 1 else f"runs/studies/curation-{given.every}")
    if given.fresh:
        shutil.rmtree(out, ignore_errors=True)
    with user_mistakes():
        write_report(run(out, given.packages, given.every), given.report, given.every)
    print(f"report: {given.report / 'curation.md'} (and .json), with figures: {out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
