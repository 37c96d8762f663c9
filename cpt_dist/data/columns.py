"""Columns of scores and labels: from a raw record's fields to arrays beside the documents of a shard.

A score is kept as float16 and NaN where a record has none, a label as its number in the source's vocabulary; nothing
is dropped or guessed for a missing value. What the columns are used for is in `strata.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cpt_dist.errors import UserError

SCORE_PREFIX, LABEL_COLUMN = "score.", "label"
"""Names of the columns in a shard: score.quality, label."""
NO_LABEL = 0xFFFF
"""Number of a document without a label."""
MOST_LABELS = 1024
_LARGEST = float(np.finfo(np.float16).max)


@dataclass
class Columns:
    """What of a source's records is kept beside the text, and what was found so far."""

    source: str
    score_fields: Mapping[str, str]
    label_field: str | None
    labels: list[str] = field(default_factory=list)
    """The vocabulary, in the order in which labels came first."""
    missing: dict[str, int] = field(default_factory=dict)
    """Score, or "label" -> kept documents without one."""

    @property
    def fields(self) -> list[str]:
        """The fields of a record that are to be read."""
        return sorted({*self.score_fields.values(), *([self.label_field] if self.label_field else [])})

    @property
    def settings(self) -> dict[str, Any]:
        """What of the configuration the columns depend on; empty where there are none."""
        scores = {"score_fields": dict(sorted(self.score_fields.items()))} if self.score_fields else {}
        return scores | ({"label_field": self.label_field} if self.label_field else {})

    def values(self, record: Mapping[str, Any]) -> dict[str, float | int]:
        """The document's value in each column, and its missing values counted.

        A score beyond float16 becomes its largest value; a boolean, text or NaN is none. Raises UserError where a
        label field turns out to hold no labels.
        """
        result: dict[str, float | int] = {}
        for score, name in sorted(self.score_fields.items()):
            value = as_score(record.get(name))
            result[SCORE_PREFIX + score] = value
            if math.isnan(value):
                self.missing[score] = self.missing.get(score, 0) + 1
        if self.label_field:
            number = self._number(record.get(self.label_field))
            result[LABEL_COLUMN] = number
            if number == NO_LABEL:
                self.missing[LABEL_COLUMN] = self.missing.get(LABEL_COLUMN, 0) + 1
        return result

    def _number(self, label: Any) -> int:
        if not isinstance(label, str) or not label.strip():
            return NO_LABEL
        label = label.strip()
        if label not in self.labels:
            if len(self.labels) >= MOST_LABELS:
                raise UserError(
                    f"source '{self.source}': label_field '{self.label_field}' has more than {MOST_LABELS} different "
                    f"values, such as '{label[:40]}'; name a field that holds a label, or a score"
                )
            self.labels.append(label)
        return self.labels.index(label)

    def state(self) -> dict[str, Any]:
        """What a journal keeps of them; empty without columns."""
        return {"columns": {"labels": list(self.labels), "missing": dict(self.missing)}} if self.fields else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind the part of a journal with this `state`."""
        if "columns" in state:
            self.labels, self.missing = list(state["columns"]["labels"]), dict(state["columns"]["missing"])

    def manifest(self) -> dict[str, Any]:
        """The manifest's entry: what each column is, and how many kept documents lack it; empty without columns."""
        if not self.fields:
            return {}
        scores = {name: {"missing": self.missing.get(name, 0)} for name in sorted(self.score_fields)}
        entry: dict[str, Any] = {"scores": scores}
        if self.label_field:
            entry["label"] = {"vocabulary": list(self.labels), "missing": self.missing.get(LABEL_COLUMN, 0)}
        return {"columns": entry}


def as_score(value: Any) -> float:
    """A raw value as a number that float16 holds, NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    # A whole number of any size is comparable with a float, though not convertible to one.
    return math.nan if value != value else float(min(max(value, -_LARGEST), _LARGEST))


def arrays(values: Sequence[Mapping[str, float | int]]) -> dict[str, np.ndarray]:
    """Name of a column -> its array [num_documents]: float16 scores, uint16 labels."""
    if not values:
        return {}
    return {
        name: np.array([one[name] for one in values], dtype=np.uint16 if name == LABEL_COLUMN else np.float16)
        for name in values[0]
    }
