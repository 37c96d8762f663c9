"""What the verdict says about items of suites and probes that occur in the training data: answers with and without.

The claims are decided without these items (`claims.without`), so a goal that holds only with them is not shown.
Here both answers are put side by side, and where they differ a sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cpt_dist.evaluation.claims import NOT_RUN, SHOWN, Answer
from cpt_dist.evaluation.suites.report import search_notes, unchecked_note
from cpt_dist.evaluation.verdict import WithLeaked
from cpt_dist.evaluation.verdict_suites import UNIT


def leaked_records(found: Sequence[Answer], with_leaked: WithLeaked | None) -> list[dict[str, Any] | None]:
    """What was found of the items of each claim of `found`; None for one that isn't about items, or not searched."""
    if with_leaked is None:
        return [None] * len(found)
    records: list[dict[str, Any] | None] = []
    for answer, over_all in zip(found, with_leaked.answers, strict=True):
        name = answer.claim.name
        if answer.claim.unit != UNIT or name not in with_leaked.found or over_all.status == NOT_RUN:
            records.append(None)
            continue
        records.append(
            {
                "items": over_all.items,
                "found": with_leaked.found[name],
                "unchecked": with_leaked.unchecked[name],
                "status_with": over_all.status,
                "gain_with": asdict(over_all.gain) if over_all.gain else None,
            }
        )
    return records


def only_leaked(claims: Sequence[dict[str, Any]]) -> list[str]:
    """A reason for each of the `claims` of verdict.json that holds only with items of the training data."""
    return [
        f"{claim['claim']} holds only with the {claim['leaked']['found']} of {claim['leaked']['items']} items that "
        "occur in the training data, so it is not shown"
        for claim in claims
        if claim["leaked"] and claim["leaked"]["status_with"] == SHOWN and claim["status"] != SHOWN
    ]


def leak_notes(claims: Sequence[dict[str, Any]], with_leaked: WithLeaked | None) -> list[str]:
    """How many items were found in the training data, and what could not be searched, one sentence each."""
    if with_leaked is None:
        return []
    by_name = {claim["name"]: claim["leaked"] for claim in claims if claim["leaked"]}
    lines = [
        f"{name}: {one['found']} of {one['items']} items occur in the training data and decide nothing."
        for name, one in by_name.items()
        if one["found"]
    ]
    lines += [unchecked_note(name, one["unchecked"]) for name, one in by_name.items() if one["unchecked"]]
    asked = {one.claim.name for one in with_leaked.answers if one.claim.unit == UNIT and one.status != NOT_RUN}
    missing = sorted(asked - with_leaked.found.keys())
    if with_leaked.searched is not None:
        lines += search_notes(with_leaked.searched)
        missing = [] if not with_leaked.searched.sources else missing
    if missing:
        lines.append(f"Not searched for in the training data (suites.contamination=false): {', '.join(missing)}.")
    return lines
