"""From opened sources to what the sample order reads: their generations, each parted into the strata of the config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from cpt_dist.config import SourceConfig, StageConfig
from cpt_dist.data.generations import generations_of_source
from cpt_dist.data.shards import HeldOutDocument, Source, merge_held_out
from cpt_dist.data.strata import resolve, strata_of
from cpt_dist.data.view_names import parse_view, source_of
from cpt_dist.errors import UserError
from cpt_dist.length_upsampling import strata_of_sources


def views_of(
    sources: Sequence[Source], configs: Mapping[str, SourceConfig], stages: Sequence[StageConfig] = ()
) -> list[Source]:
    """The views of all sources, in the order of `sources`: generation by generation, stratum by stratum.

    A source without strata that one of the `stages` upsamples by length is parted by that.
    Raises UserError with every source whose shards don't hold what its strata are made by.
    """
    views: list[Source] = []
    problems: list[str] = []
    parts = strata_of_sources(configs, stages)
    for source in sources:
        generations = generations_of_source(source)
        strata = parts[source.name]
        if strata is None:
            views += generations
            continue
        try:
            partition = resolve(strata, generations[0])
            views += [view for generation in generations for view in strata_of(generation, partition)]
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return views


def generations_in(views: Sequence[Source]) -> set[tuple[str, int]]:
    """(source, generation) of all views."""
    return {parse_view(view.name)[:2] for view in views}


def held_out_of(
    views: Sequence[Source], source: str, but: Collection[tuple[str, int]] = ()
) -> Iterator[HeldOutDocument]:
    """The held-out documents of a source's generations in `views`, ordered by id, those of generations `but` left out.

    Raises UserError, by name, for a file that is missing or altered.
    """
    parts = {parse_view(view.name)[:2]: view for view in views if source_of(view.name) == source}
    chosen = [view for pair, view in sorted(parts.items()) if pair not in but]
    entries = [entry for view in chosen for entry in view.manifest["held_out"]]
    return merge_held_out(chosen[0].folder, source, entries)
