"""Names of what the sample order reads: law, its stratum law/high, its generation law@1, and law@1/high.

To the order each of them is a source of its own, with its own rows and counts; only the names say what belongs
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Number = TypeVar("Number", int, float)


class ViewName(NamedTuple):
    """The parts of a name; generation 0 and no stratum (None) are not spelt out."""

    source: str
    generation: int = 0
    stratum: str | None = None

    @property
    def key(self) -> str:
        """The name without its generation: the stratum, or the source that has none."""
        return self.source if self.stratum is None else f"{self.source}/{self.stratum}"

    def __str__(self) -> str:
        generation = f"@{self.generation}" if self.generation else ""
        return f"{self.source}{generation}" + ("" if self.stratum is None else f"/{self.stratum}")


def parse_view(name: str) -> ViewName:
    """The parts of a name; names of sources hold neither '@' nor '/' (`prepare` sees to it)."""
    head, slash, stratum = name.partition("/")
    source, _, generation = head.partition("@")
    return ViewName(source, int(generation or 0), stratum if slash else None)


def source_of(name: str) -> str:
    """The source that a view is of."""
    return parse_view(name).source


def by_source(values: Mapping[str, Number]) -> dict[str, Number]:
    """Sums over the views of each source."""
    result: dict[str, Number] = {}
    for name, value in values.items():
        source = source_of(name)
        result[source] = result[source] + value if source in result else value
    return result


def parted(names: Sequence[str]) -> list[str]:
    """Those of `names` that are a part of a source: a stratum, or one of several generations."""
    sources = [source_of(name) for name in names]
    return [name for name, source in zip(names, sources, strict=True) if name != source or sources.count(source) > 1]


def source_differences(name: str, saved: str, present: Mapping[str, str]) -> list[str]:
    """Why a run that read the view `name` with the fingerprint `saved` can't go on with those of `present`."""
    view = parse_view(name)
    now = present.get(name)
    if now == saved:
        return []
    strata_key = f"data.sources.{view.source}.strata"
    if now is None:
        others = [other for other in present if parse_view(other)[:2] == view[:2]]
        if others:
            read_as = ", ".join(f"'{other}'" for other in others)
            line = f"source '{name}' is read as {read_as} now: its strata changed; set {strata_key} back to resume"
            if any("/under_" in other for other in others):
                line += (
                    " (a stage's length_upsampling parts its source for the whole run: begin a run with it, or train "
                    "that stage as a run of its own on this one's model)"
                )
            return [line]
        what = f"generation {view.generation} of source '{view.source}'" if view.generation else f"source '{name}'"
        return [f"{what} is missing; the run has read from it, so add it again"]
    was_of, now_of = (fingerprint.partition(", ") for fingerprint in (saved, now))
    if was_of[0] == now_of[0]:
        return [f"stratum '{name}' was {was_of[2]} and is {now_of[2]}; set {strata_key} back to resume"]
    return [
        f"source '{name}' was {saved} and is {now}: its shards were made again; "
        "restore the old ones, or start a new run_dir"
    ]


def with_strata(views: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records of views as records of sources: numbers added up, other values the first's, views under `strata`.

    A source that is one view of its own name keeps that one's record.
    """
    result: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(source_of(name) for name in views):
        parts = {name: record for name, record in views.items() if source_of(name) == source}
        if list(parts) == [source]:
            result[source] = parts[source]
            continue
        first = next(iter(parts.values()))
        total = {
            key: sum(part[key] for part in parts.values()) if isinstance(value, (int, float)) else value
            for key, value in first.items()
        }
        result[source] = {**total, "strata": parts}
    return result
