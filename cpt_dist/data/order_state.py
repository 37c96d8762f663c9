"""What a checkpoint keeps of the sample order, and whether a saved state still means the same samples.

A state holds n, one fingerprint of all that the samples before n depend on, and short ones of its parts; its size does
not grow with the shares. The whole identity is kept once, in the run directory (order.json), and names what changed;
without it the short ones still say which part did. That a loader's state is checked by fingerprint is OLMo-core's idea.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cpt_dist.data.caps import Cap
from cpt_dist.data.ledger_entry import ledger_differences
from cpt_dist.data.plan_changes import as_long_as, starts_of, with_lengths
from cpt_dist.data.stage_plan import stage_differences
from cpt_dist.data.view_names import parse_view, source_differences, source_of
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint

ORDER_VERSION = 1
"""Raised by any change after which some n reads another row."""

_WINDOW = "shuffle_window_shards"

_TAKE_DOWNS, _SKIPS = "take_downs", "skips"

_SHORT_DIGITS = 6
"""Hexadecimal digits of a part's fingerprint: enough to name the part, as the whole one decides."""


def identity(
    seed: int,
    stages: Sequence[dict[str, Any]],
    sources: Mapping[str, str],
    ledger: Sequence[dict[str, Any]] = (),
    caps: Mapping[str, Cap] | None = None,
    window_shards: int = 0,
    take_downs: Sequence[dict[str, Any]] = (),
    skips: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """All that an order depends on, as JSON values: identities of stages, fingerprints by source, ledger effects.

    `take_downs` and `skips` decide what is left of the rows, not which they are.
    """
    used = {name for stage in stages for name in stage["mixture"]}
    changes: dict[str, Any] = {}
    if ledger:
        changes["ledger"] = list(ledger)
    if caps:
        changes["caps"] = {name: asdict(cap) for name, cap in caps.items()}
    if window_shards:
        changes[_WINDOW] = window_shards
    if take_downs:
        changes[_TAKE_DOWNS] = list(take_downs)
    if skips:
        changes[_SKIPS] = list(skips)
    return {
        "version": ORDER_VERSION,
        "seed": seed,
        "sources": {name: saved for name, saved in sources.items() if source_of(name) in used},
        "stages": list(stages),
        **changes,
    }


def compact(whole: Mapping[str, Any], n: int, capped: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state at sample n of the order with the identity `whole`: about 1 kB, also with 100 sources.

    `capped` are the caps that act on the first n samples; only these of all caps decide about them.
    """
    ledger = whole.get("ledger", [])
    state = {
        "version": whole["version"],
        "n": n,
        "order": _of_samples(whole, len(whole["stages"]), len(ledger)),
        "seed": whole["seed"],
        "stage_parts": [_short(stage) for stage in whole["stages"]],
        "source_parts": "".join(_short(found) for _, found in sorted(whole["sources"].items())),
        "ledger_entries": len(ledger),
        "stage_samples": [stage["num_samples"] for stage in whole["stages"]],
    }
    state |= {key: whole[key] for key in (_WINDOW, _TAKE_DOWNS, _SKIPS) if key in whole}
    return {**state, "capped": list(capped)} if capped else state


def check_state(
    state: Mapping[str, Any],
    present: Mapping[str, Any],
    all_sources: Mapping[str, str],
    capped: Sequence[dict[str, Any]],
    record: Mapping[str, Any] | None,
) -> int:
    """The n of a saved state whose plan is `present`, or that without its last stages and ledger entries.

    `present` is the present identity, `all_sources` are fingerprints of all sources there are, `capped` the caps that
    now act before the state's n, `record` the identity in the run directory. States of earlier versions, which held the
    whole identity, are read as well. Raises UserError that names each thing that differs.
    """
    if state.get("version") != ORDER_VERSION:
        raise UserError(
            f"sample order: the checkpoint has version {state.get('version')}, this program {ORDER_VERSION}; "
            "go on with the version of cpt_dist that wrote it"
        )
    n = int(state["n"])
    saved = state if "stages" in state else _whole_of(state, record)
    if saved is not None:
        problems = _differences(_lengthened(saved, present, n), present, all_sources, n)
    else:
        problems = _differing_parts(state, _shortened(present, state, n))
        new = present.get("ledger", [])[state["ledger_entries"] :]
        problems += ledger_differences([], new, n)
    problems += ledger_differences(state.get(_TAKE_DOWNS, []), present.get(_TAKE_DOWNS, []), n, "take-down")
    problems += ledger_differences(state.get(_SKIPS, []), present.get(_SKIPS, []), n, "skip")
    problems = problems or _cap_differences(state.get("capped", []), capped)
    if problems:
        raise UserError(problems)
    return n


def check_past(
    state: Mapping[str, Any],
    present: Mapping[str, Any],
    all_sources: Mapping[str, str],
    capped: Sequence[dict[str, Any]],
    record: Mapping[str, Any] | None,
) -> int:
    """The n of a state of another run, whose first n samples are those of the plan `present`; as `check_state`.

    Stages that the other run had not begun may differ, and its stage in progress may have another length where its
    shares don't move. `record` is the identity in the other run's directory, and must be there.
    """
    n = int(state["n"])
    saved = state if "stages" in state else _whole_of(state, record)
    if saved is None:
        raise UserError(
            "fork.run_dir: order.json there is not of the checkpoint's plan, so it doesn't say what was read; fork "
            "from a newer checkpoint"
        )
    begun = [stage for stage, start in zip(saved["stages"], starts_of(saved["stages"]), strict=False) if start < n]
    used = {name for stage in begun for name in stage["mixture"]}
    sources = {name: found for name, found in saved["sources"].items() if source_of(name) in used}
    past = _lengthened({**saved, "stages": begun, "sources": sources}, present, n)
    problems = _differences(past, present, all_sources, n)
    problems += ledger_differences(state.get(_TAKE_DOWNS, []), present.get(_TAKE_DOWNS, []), n, "take-down")
    problems += ledger_differences(state.get(_SKIPS, []), present.get(_SKIPS, []), n, "skip")
    problems = problems or _cap_differences(state.get("capped", []), capped)
    if problems:
        raise UserError(f"fork: {problem}" for problem in problems)
    return n


def _lengthened(saved: Mapping[str, Any], present: Mapping[str, Any], n: int) -> Mapping[str, Any]:
    """`saved` with its last stage as long as it is now, where the samples read of it, up to n, don't hang on that."""
    last = len(saved["stages"]) - 1
    if last < 0 or last >= len(present["stages"]):
        return saved
    done = max(0, n - starts_of(saved["stages"])[last])
    stage = as_long_as(saved["stages"][last], present["stages"][last], done, saved.get("ledger", []))
    return {**saved, "stages": [*saved["stages"][:last], stage]}


def _shortened(present: Mapping[str, Any], state: Mapping[str, Any], n: int) -> Mapping[str, Any]:
    """`present` with the last stage of a saved state as long as it was then, where the samples don't hang on that."""
    lengths = state.get("stage_samples", [])
    last = len(lengths) - 1
    if last < 0 or last >= len(present["stages"]):
        return present
    then = {**present["stages"][last], "num_samples": lengths[last]}
    done = max(0, n - sum(lengths[:last]))
    if as_long_as(then, present["stages"][last], done, present.get("ledger", [])) == then:
        return present
    stages = [*present["stages"][:last], then, *present["stages"][last + 1 :]]
    return {**present, "stages": stages}


def _of_samples(whole: Mapping[str, Any], num_stages: int, num_entries: int) -> str:
    """Fingerprint of what the first stages and ledger entries of an order mean, without its caps."""
    stages = _plain(whole["stages"][:num_stages])
    sources = _sources_then(whole, num_stages, num_entries)
    ledger = _plain(whole.get("ledger", [])[:num_entries])
    return fingerprint([whole["version"], whole["seed"], whole.get(_WINDOW, 0), sources, stages, ledger])


def _sources_then(whole: Mapping[str, Any], num_stages: int, num_entries: int) -> dict[str, str]:
    """The sources of the first stages, without the generations that later ledger entries let in."""
    used = {name for stage in whole["stages"][:num_stages] for name in stage["mixture"]}
    entries = whole.get("ledger", [])[num_entries:]
    late = {(name, g) for entry in entries for name, new in entry.get("generations", {}).items() for g in new}
    found = whole["sources"].items()
    return {name: part for name, part in found if source_of(name) in used and parse_view(name)[:2] not in late}


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back, with every number a double: a share of 2 is one of 2.0."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _short(part: Any) -> str:
    return fingerprint(_plain(part))[:_SHORT_DIGITS]


def _whole_of(state: Mapping[str, Any], record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The recorded identity where it is the one that the state was made with."""
    if record is None or len(record["stages"]) < len(state["stage_parts"]):
        return None
    record = {**record, "stages": with_lengths(record["stages"], state.get("stage_samples", []))}
    num_stages, num_entries = len(state["stage_parts"]), state["ledger_entries"]
    if _of_samples(record, num_stages, num_entries) != state["order"]:
        return None
    ledger = record.get("ledger", [])[:num_entries]
    stages, window = record["stages"][:num_stages], record.get(_WINDOW, 0)
    sources = _sources_then(record, num_stages, num_entries)
    return identity(record["seed"], stages, sources, ledger, window_shards=window)


def _differences(
    saved: Mapping[str, Any], present: Mapping[str, Any], all_sources: Mapping[str, str], n: int
) -> list[str]:
    """What of a saved identity is not what it was."""
    problems = _different_settings(saved, present)
    for name, was in saved["sources"].items():
        problems += source_differences(name, was, all_sources)
    for number, stage in enumerate(saved["stages"]):
        problems += stage_differences(stage, present["stages"][number] if number < len(present["stages"]) else None)
    return problems + ledger_differences(saved.get("ledger", []), present.get("ledger", []), n)


def _different_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Seed and window, which every form of a state holds."""
    settings = (("seed", "seed", None), (f"data.{_WINDOW}", _WINDOW, 0))
    return [
        f"{name} was {saved.get(key, default)} and is {present.get(key, default)}; set it back to resume"
        for name, key, default in settings
        if saved.get(key, default) != present.get(key, default)
    ]


def _differing_parts(state: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Which parts of the present plan are not those of a compact state; empty where none differs."""
    num_stages, num_entries = len(state["stage_parts"]), state["ledger_entries"]
    if _of_samples(present, num_stages, num_entries) == state["order"]:
        return []
    problems = _different_settings(state, present)
    if len(present["stages"]) < num_stages:
        problems.append(f"there were {num_stages} stages and are {len(present['stages'])}; add the last ones again")
    for was, stage in zip(state["stage_parts"], present["stages"], strict=False):
        if was != _short(stage):
            problems.append(
                f"stage '{stage['name']}' is not what it was; set it back to resume (order.json of the run directory, "
                "which says what it was, is missing or of another run)"
            )
    if not problems:
        for number, (name, found) in enumerate(sorted(_sources_then(present, num_stages, num_entries).items())):
            place = number * _SHORT_DIGITS
            if state["source_parts"][place : place + _SHORT_DIGITS] != _short(found):
                problems.append(
                    f"source '{name}' is not what it was: its shards were made again, or its strata changed; restore "
                    "the old ones, or start a new run_dir"
                )
    return problems or [
        f"the first {num_entries} ledger entries are not those that the checkpoint was made with; "
        "restore the run's ledger.jsonl"
    ]


def _cap_differences(saved: Sequence[dict[str, Any]], present: Sequence[dict[str, Any]]) -> list[str]:
    was_capped, is_capped = ({one["source"]: one for one in capped} for capped in (saved, present))
    return [
        f"data.sources.{source_of(name)}.max_epochs: the source {_cap_in_words(was_capped.get(name))}, and now "
        f"{_cap_in_words(is_capped.get(name))}; set it back to resume"
        for name in sorted({*was_capped, *is_capped})
        if was_capped.get(name) != is_capped.get(name)
    ]


def _cap_in_words(capped: dict[str, Any] | None) -> str:
    if capped is None:
        return "was not capped before the checkpoint"
    return f"was capped at sample {capped['n']} ({capped['max_epochs']:g} epochs, {capped['policy']})"
