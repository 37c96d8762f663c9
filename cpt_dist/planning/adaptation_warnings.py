"""What has to be heeded before training on raw text: an instruct model as the base, little text, missing replay.

A warning changes no rank; the rules that do are in `adaptation_rules.py`. A pure function of `Facts`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cpt_dist.planning.adaptation import Facts, replay_share
from cpt_dist.planning.adaptation_rules import count, effective_thresholds


def warnings(facts: Facts, changes: Mapping[str, float] | None = None) -> list[str]:
    """What has to be heeded whichever option is chosen, if it is one that trains on raw text."""
    thresholds = effective_thresholds(changes)
    found = []
    if facts.instruct_signs:
        found.append(
            f"This looks like an instruct model ({'; '.join(facts.instruct_signs)}). Train the base model that it was "
            "made from and add the difference of weights instruct - base afterwards (arXiv 2410.10739), or repeat the "
            "instruction tuning."
        )
    if facts.domain_tokens < thresholds["ample_tokens"]:
        found.append(
            f"The corpus is small: {count(facts.domain_tokens)} different tokens, guides want "
            f"{count(thresholds['ample_tokens'])}. At most 4 readings help (arXiv 2305.16264); text rewritten in many "
            "ways helps more (arXiv 2409.07431)."
        )
    share = replay_share(facts, dict(thresholds))
    wanted = share / (1 - share) * facts.domain_tokens
    if not facts.general_tokens:
        found.append(
            f"No general text was given: give some as general=FILES. CPT without replay forgets; begin with "
            f"{share:.0%} of tokens (arXiv 2403.08763)."
        )
    elif facts.general_tokens < wanted:
        found.append(
            f"General text is short: {share:.0%} replay beside one reading of the domain are {count(wanted)} tokens, "
            f"{count(facts.general_tokens)} were given."
        )
    return found
