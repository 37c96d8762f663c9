"""Generations: what prepare found at one time is one, what it appended to the complete source later the next.

The manifest of a grown source lists the files of all of them and keeps, for each, the manifest that it had or would
have alone, so that the fingerprint of a generation never changes. Nothing is written here (`prepare.py`
does that).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpt_dist.data.shards import Source
from cpt_dist.data.view_names import ViewName
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint

FILE_LISTS = ("shards", "held_out", "provenance")


def generation_manifests(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifest of each generation; of a source that never grew, its own.

    Raises UserError for a record that is not that of the generation's fingerprint.
    """
    if "generations" not in manifest:
        return [manifest]
    found: list[dict[str, Any]] = []
    at = dict.fromkeys(FILE_LISTS, 0)
    for record in manifest["generations"]:
        one = {key: value for key, value in record.items() if key not in ("files", "whole")}
        for key in FILE_LISTS:
            one[key] = manifest[key][at[key] : at[key] + record["files"][key]]
            at[key] += record["files"][key]
        if fingerprint({key: value for key, value in one.items() if key != "fingerprint"}) != one["fingerprint"]:
            raise UserError(
                f"source '{manifest['source']}': generation {len(found)} in its manifest was altered; fetch it again"
            )
        found.append(one)
    return found


def whole_fingerprints(manifest: dict[str, Any]) -> list[str]:
    """The fingerprint that the whole source had after each of its generations."""
    if "generations" not in manifest:
        return [manifest["fingerprint"]]
    return [*(record["whole"] for record in manifest["generations"][:-1]), manifest["fingerprint"]]


def grown_manifest(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a source with one more generation; `new` is that generation's own, with its fingerprint."""
    parts = [*generation_manifests(old), new]
    whole = [*whole_fingerprints(old), None]
    records = []
    for part, print_of_whole in zip(parts, whole, strict=True):
        record = {key: value for key, value in part.items() if key not in FILE_LISTS}
        record["files"] = {key: len(part[key]) for key in FILE_LISTS}
        # What the source was called when sources below it looked for duplicates in it.
        record["whole"] = print_of_whole
        records.append(record)
    result = {key: value for key, value in new.items() if key not in ("generation", "grown_from", "fingerprint")}
    for key in FILE_LISTS:
        result[key] = [entry for part in parts for entry in part[key]]
    for key in ("tokens", "documents", "text_bytes"):
        result[key] = sum(part[key] for part in parts)
    result["counts"] = _sum_counts([part["counts"] for part in parts])
    if "columns" in new:
        result["columns"] = _sum_missing([part["columns"] for part in parts])
    result["pipeline"] = {
        **new["pipeline"],
        "inputs": {name: state for part in parts for name, state in part["pipeline"]["inputs"].items()},
    }
    result["generations"] = records
    result["fingerprint"] = fingerprint(result)
    return result


def _sum_counts(counts: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for one in counts:
        for key, value in one.items():
            if isinstance(value, dict):
                inner = total.setdefault(key, {})
                for reason, number in value.items():
                    inner[reason] = inner.get(reason, 0) + number
            else:
                total[key] = total.get(key, 0) + value
    return {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in total.items()}


def _sum_missing(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest entry (its vocabulary holds that of all before), with the missing values of all."""
    newest = columns[-1]
    scores = {name: {"missing": sum(one["scores"][name]["missing"] for one in columns)} for name in newest["scores"]}
    if "label" not in newest:
        return {"scores": scores}
    missing = sum(one["label"]["missing"] for one in columns)
    return {"scores": scores, "label": {"vocabulary": newest["label"]["vocabulary"], "missing": missing}}


def generations_of_source(source: Source) -> list[Source]:
    """The source as one `Source` for each of its generations, named law, law@1, …; itself where it never grew.

    Generation 0 has the fingerprint that the source had before it grew, so a run that read it goes on.
    """
    manifests = generation_manifests(source.manifest)
    if len(manifests) == 1:
        return [source]
    result, first = [], 0
    for number, manifest in enumerate(manifests):
        one = Source.__new__(Source)
        one.__dict__.update(source.__dict__)  # the same mapped files, and what of them was verified
        last = first + len(manifest["shards"])
        one.manifest, one.fingerprint = manifest, manifest["fingerprint"]
        one.name = str(ViewName(source.name, number))
        one.shard_tokens = np.array([entry["tokens"] for entry in manifest["shards"]], dtype=np.int64)
        one._shards = source._shards[first:last]
        result.append(one)
        first = last
    return result
