"""How long the documents behind a stage's tokens really are: short ones, and those joined to fill a row.

Against the length that the base model was trained at a document is *short* or not; against the stage's `seq_len` a
token is *joined* when its document is shorter, so that its row is full only because documents were laid end to end.
Both are shares of tokens, from the manifests where these tell, else from the recorded bounds; no token is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpt_dist.data.length_counts import share_below
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.shards import Source
from cpt_dist.data.view_names import by_source


def stage_tokens(order: SampleOrder, stage: int) -> dict[str, float]:
    """Source or view -> tokens that the shares ask for in a stage."""
    start, end = (order.planned_tokens(order.stage_starts[at]) for at in (stage, stage + 1))
    return {name: end[name] - start[name] for name in end}


def joined_shares(order: SampleOrder, sources: Sequence[Source]) -> dict[int, dict[str, float]]:
    """seq_len of a stage -> source or view -> share of its tokens in documents that are shorter than that."""
    lengths = {stage.seq_len for stage in order.stages}
    return {length: {source.name: share_below(source, length) for source in sources} for length in sorted(lengths)}


def planned_joined(order: SampleOrder, shares: Mapping[int, Mapping[str, float]], n: int) -> dict[str, float]:
    """Source or view -> tokens planned among the first n samples in documents shorter than their stage's rows.

    `shares` are `joined_shares`.
    """
    total = dict.fromkeys(order.source_names, 0.0)
    before = order.planned_tokens(0)
    for stage, end in zip(order.stages, order.stage_starts[1:], strict=True):
        after = order.planned_tokens(min(n, end))
        for name in total:
            total[name] += (after[name] - before[name]) * shares[stage.seq_len][name]
        before = after
    return total


def short_share_problems(
    order: SampleOrder,
    sources: Sequence[Source],
    trained: Sequence[int | None],
    least: float,
    first_sample: int = 0,
) -> list[str]:
    """A line for each stage that gives short documents a smaller share of its tokens than `least`.

    `trained` is, of each stage, the length that the base model was trained at; a stage whose rows are no longer, or
    that begins before `first_sample`, is left alone.
    """
    problems = []
    for number, (stage, length) in enumerate(zip(order.stages, trained, strict=True)):
        if length is None or stage.seq_len <= length or order.stage_starts[number] < first_sample or not least:
            continue
        tokens = stage_tokens(order, number)
        short = {one.name: tokens[one.name] * share_below(one, length) for one in sources if tokens[one.name]}
        total = max(1.0, sum(tokens.values()))
        share = sum(short.values()) / total
        if share < least:
            problems.append(_too_few(stage.name, length, share, least, by_source(short), by_source(tokens), total))
    return problems


def _too_few(
    stage: str,
    length: int,
    share: float,
    least: float,
    short: Mapping[str, float],
    tokens: Mapping[str, float],
    total: float,
) -> str:
    parts = ", ".join(f"{name} {short[name] / total:.1%} of its {tokens[name] / total:.1%}" for name in sorted(short))
    return (
        f"stage '{stage}': {share:.1%} of its tokens lie in documents of fewer than {length} tokens, the length that "
        f"the base model was trained at ({parts}), and long_data.min_short_share asks for {least:.0%}, as long "
        "documents alone cost what the model could do before (ProLong, arXiv 2410.02660); give a source of short "
        "documents a larger share, lower the factor of length_upsampling, or set "
        f"long_data.min_short_share={int(share * 100) / 100:g}"
    )
