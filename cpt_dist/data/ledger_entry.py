"""Decisions on a running run, and how they are kept in ledger.jsonl; take-downs and skips are beside it.

An entry is written before it acts and never changed, so that the same ledger gives the same sample order without the
measurements that led to it (Sheared LLaMA, arXiv 2310.06694, keeps the used samples instead; this keeps the reason).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cpt_dist.data.gate_decision import GateDecision, forks
from cpt_dist.data.skip import Skip
from cpt_dist.data.take_down import TakeDown
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write


@dataclass(frozen=True)
class LedgerEntry:
    """From sample `n_start` to the end of its stage, or to the next entry, the stage's shares are `weights`."""

    kind: ClassVar[str] = "weights"

    n_start: int
    """Global index of the first sample that the weights rule; a step boundary."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Source -> share of tokens, as in `StageConfig.mixture`; progress of points is that of the stage. Empty: the
    shares stay. What is inside a source (strata, generations) goes on as the stage has it."""
    reason: str = ""
    """What was decided and why, in a sentence."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """The measurements behind the decision, as JSON."""
    generations: dict[str, list[int]] = field(default_factory=dict)
    """Source that has grown -> its generations that are read from `n_start` to the end of the run. The source's share
    stays, and is divided in proportion to tokens."""

    def __post_init__(self) -> None:
        if not self.weights and not self.generations:
            raise ValueError("it changes nothing: neither weights nor generations")

    @property
    def effect(self) -> dict[str, Any]:
        """The part that the sample order depends on."""
        generations = {"generations": self.generations} if self.generations else {}
        return {"n_start": self.n_start, "weights": self.weights, **generations}


def generations_of(entries: Sequence[LedgerEntry]) -> set[tuple[str, int]]:
    """(source, generation) that the entries let in."""
    return {(name, number) for entry in entries for name, numbers in entry.generations.items() for number in numbers}


Entry = LedgerEntry | TakeDown | Skip | GateDecision
"""An entry of any kind. A line of ledger.jsonl without a kind, of a version that knew one only, is of weights."""


def entries_before_fork(entries: Sequence[Entry], number: int) -> list[Entry]:
    """The ledger as it was before fork number `number` (from 0) of the plan was decided."""
    fork = forks(entries)[number]
    given_up = [_entry(dict(record), Path()) for record in fork.evidence.get("given_up", [])]
    return [*entries[: list(entries).index(fork)], *given_up]


def _entry(record: dict[str, Any], run_dir: Path) -> Entry:
    kind = record.pop("kind", LedgerEntry.kind)
    if kind == TakeDown.kind:
        return TakeDown.from_record(record, run_dir)
    if kind == Skip.kind:
        return Skip(**record)
    if kind == GateDecision.kind:
        return GateDecision(**record)
    if kind == LedgerEntry.kind:
        return LedgerEntry(**record)
    raise ValueError(f"this version knows no entries of kind '{kind}'")


def read_ledger(path: str | Path) -> list[Entry]:
    """The entries of a ledger file, none where it does not exist; UserError for a line that is no entry."""
    path = Path(path)
    if not path.exists():
        return []
    entries: list[Entry] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(_entry(json.loads(line), path.parent))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(
                f"'{path}' line {number} is no ledger entry ({error}); restore the file from a copy: "
                "the order of the run's samples depends on it"
            ) from error
    return entries


def write_ledger(path: str | Path, entries: Sequence[Entry]) -> None:
    """Write all entries, a line each, whole or not at all; durable when it returns."""
    for entry in entries:
        if isinstance(entry, TakeDown):
            entry.write_documents(Path(path).parent)
    with atomic_write(path, "w") as handle:
        for entry in entries:
            record = entry.record() if isinstance(entry, TakeDown) else asdict(entry)
            handle.write(json.dumps({"kind": entry.kind, **record}, ensure_ascii=False) + "\n")


def ledger_differences(
    saved: Sequence[dict[str, Any]], present: Sequence[dict[str, Any]], n: int, what: str = "ledger entry"
) -> list[str]:
    """Why a run saved at sample `n` with the entries' effects `saved` can't go on with `present`; empty if it can.

    Entries may have been added behind the saved ones, as long as they act from n on.
    """
    problems = []
    for number, entry in enumerate(saved):
        if number >= len(present):
            problems.append(f"{what} at sample {entry['n_start']} is missing; restore the run's ledger.jsonl")
        elif present[number] != entry:
            problems.append(f"{what} {number + 1} was {entry} and is {present[number]}; restore the run's ledger.jsonl")
    problems += [
        f"{what} at sample {entry['n_start']} is new, but the run has already gone to sample {n}; "
        "give it a later n_start"
        for entry in present[len(saved) :]
        if entry["n_start"] < n
    ]
    return problems
