"""Claims about downstream probes, from the probe.json files that launch/probe.py wrote.

A probe that is named in `verdict.goals` has to gain, any other has to be kept within its margin, as with suites. It
must be a probe of the models that are judged, by content. Its claim holds for other items and other seeds. Items that
the probe found in the training data decide nothing, as with suites.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.claims import CONTROL, GOAL, RETENTION, Claim, without
from cpt_dist.model.folder import model_fingerprint

FORMAT = "cpt_dist.probe/1"
UNIT = "points"


def probe_paths(given: Any) -> list[Path]:
    """The probe.json files of `verdict.probe`: a file or folder, or a list of them."""
    entries = [given] if isinstance(given, str) else list(given)
    return [Path(entry) / "probe.json" if Path(entry).is_dir() else Path(entry) for entry in entries]


def read_probes(given: Any) -> list[dict[str, Any]]:
    """The records behind `verdict.probe`. Raises UserError for files that are missing or no probe."""
    records, problems = [], []
    for path in probe_paths(given):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            problems.append(f"verdict.probe: there is no file '{path}'; run launch/probe.py, or name its out folder")
            continue
        except ValueError as error:
            problems.append(f"verdict.probe: '{path}' is no JSON ({error}); run launch/probe.py again")
            continue
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            problems.append(f"verdict.probe: '{path}' is no result of launch/probe.py ({FORMAT})")
        else:
            records.append(record)
    names = [record["probe"] for record in records]
    problems += [
        f"verdict.probe: two probes are called '{name}'; give one gold set another name: in its file"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise UserError(problems)
    return records


@dataclass(frozen=True)
class ProbeClaims:
    """What is claimed about probes."""

    claims: list[Claim]
    """About the items that were not found in the training data; these decide."""
    with_leaked: list[Claim]
    """The same claims about all items."""
    leaked: dict[str, int]
    """Name in the claims -> number of its items that were found; without the probes that searched nothing."""
    unchecked: dict[str, int]
    """Likewise its items that were too short to be searched for."""


def probe_claims(config: CptConfig, folders: Mapping[str, str]) -> ProbeClaims:
    """The claims about `config.verdict.probe` for the models in `folders` (base, adapted and perhaps control).

    Raises UserError for a probe of other models.
    """
    records = read_probes(config.verdict.probe)
    here = {name: model_fingerprint(folder) for name, folder in folders.items()} if records else {}
    problems = []
    for record in records:
        there = {arm["arm"]: arm for arm in record["arms"]}
        problems += [
            f"verdict.probe: {name} of the probe '{record['probe']}' was '{there[name]['folder']}', whose files are "
            f"others than those of '{folders[name]}'; probe this model"
            for name in folders
            if name in there and there[name]["model"] != here[name]
        ]
    if problems:
        raise UserError(problems)
    over_all = [(claims_of_probe(record, config, "control" in folders), record["found"]) for record in records]
    searched = [record for record in records if record["unchecked"] is not None]
    return ProbeClaims(
        [without(claim, found) for claims, found in over_all for claim in claims],
        [claim for claims, _ in over_all for claim in claims],
        {claimed_name(record): len(record["found"]) for record in searched},
        {claimed_name(record): record["unchecked"] for record in searched},
    )


def claimed_name(record: Mapping[str, Any]) -> str:
    """The name of a probe in claims."""
    return f"{record['probe']} (probe)"


def claims_of_probe(record: Mapping[str, Any], config: CptConfig, with_control: bool) -> list[Claim]:
    """The claims about one probe.json, over all its items."""
    name = record["probe"]
    goal = name in config.verdict.goals
    threshold = config.verdict.margins.get(name, 0.0) if goal else -record["margin"]
    found = [_claim(record, GOAL if goal else RETENTION, threshold, "base")]
    if goal and with_control:
        found.append(_claim(record, CONTROL, 0.0, "control"))
    return found


def _claim(record: Mapping[str, Any], kind: str, threshold: float, other: str) -> Claim:
    name = claimed_name(record)
    if other not in record["scores"]:
        reason = "the probe has no control arm; run launch/probe.py with control=FOLDER"
        return Claim(name, kind, threshold, UNIT, not_run=reason)
    repeats = np.array(record["scores"]["adapted"]) - np.array(record["scores"][other])
    gains = repeats.mean(axis=0)
    return Claim(name, kind, threshold, UNIT, gains, np.ones(len(gains)), repeats=repeats)
