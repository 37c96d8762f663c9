"""Raw text to complete sources: read, normalise, deduplicate, hold out, tokenise, write shards.

One process reads, and the tokenizer uses all cores. A source is finished part by part (`journal.py`), so a killed
run goes on from its last whole part, and its files are the same bytes as those of a run that was never killed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.data.columns import Columns
from cpt_dist.data.curated import curated_fates
from cpt_dist.data.documents import Counts, Fate, batches, fates
from cpt_dist.data.generations import grown_manifest, whole_fingerprints
from cpt_dist.data.imports import imported
from cpt_dist.data.instructions import instruction_fates
from cpt_dist.data.journal import Journal
from cpt_dist.data.prepare_display import PrepareDisplay
from cpt_dist.data.prepare_task import Task, plan_tasks
from cpt_dist.data.shard_writer import Part, write_held_out, write_provenance, write_shard
from cpt_dist.data.shards import MANIFEST, read_manifest, recorded_ids
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint, write_json
from cpt_dist.work_folder import difference, locked

HELD_OUT_PART_BYTES = 256 << 20
_OWN_FILE = re.compile(r"\..*\.tmp\.\d+|(shard|provenance|held_out)-\d{5}\..*")
_PART_FILES = {"shard": "shards", "held_out": "held_out", "provenance": "provenance"}
"""Key of a journal line -> key of the manifest that lists those files."""


@dataclass(frozen=True)
class PreparedSource:
    """A complete source: its folder, its manifest, and whether this run found it complete already."""

    folder: Path
    manifest: dict[str, Any]
    was_complete: bool
    grew: bool = False
    """A generation was appended to what was complete."""


def prepare(config: CptConfig, curated: Mapping[str, str] | None = None) -> list[PreparedSource]:
    """Prepare every source of `config.data.sources`, in their order; print progress and a table of counts.

    `curated` maps sources whose raw files are curated documents (`curated.py`) to the fingerprint of these.

    A document found in several sources stays in the first. Raises UserError for raw files that are missing, damaged
    or of an unknown format, a source of which nothing is kept, a folder prepared with other settings or inputs (new
    inputs of a source that may grow become its next generation), and a folder that another process is writing.
    """
    tasks = plan_tasks(config, curated or {})
    _refuse_other_settings(tasks)
    finished: list[PreparedSource] = []
    seen: set[bytes] = set()
    num_loaded = 0
    with PrepareDisplay() as display:
        for task in tasks:
            against = {done.folder.name: done.manifest["fingerprint"] for done in finished}
            histories = {done.folder.name: whole_fingerprints(done.manifest) for done in finished}
            task.folder.mkdir(parents=True, exist_ok=True)
            with locked(task.folder):
                complete = _complete(task, histories)
                if complete is not None:
                    complete = _grow(task, complete, against, tasks, display)
                else:
                    for done in finished[num_loaded:]:
                        if done.was_complete or done.grew:
                            seen |= _ids(done.folder, done.manifest)
                    num_loaded = len(finished)
                    complete = _prepare_source(task, against, seen, display)
            finished.append(complete)
    display.table([(done.manifest, done.was_complete, done.folder) for done in finished])
    return finished


def _recorded_header(task: Task, journal: Journal) -> dict[str, Any] | None:
    """The header that work in the folder was begun or completed with, None where nothing of worth is there."""
    if (task.folder / MANIFEST).is_file():
        return read_manifest(task.folder)
    return journal.header if journal.parts else None


def _difference(task: Task, recorded: dict[str, Any], header: dict[str, Any]) -> str | None:
    if "cut_min_tokens" not in recorded["pipeline"]:  # begun before places to cut were recorded, and going on without
        pipeline = {key: value for key, value in header["pipeline"].items() if key != "cut_min_tokens"}
        header = {**header, "pipeline": pipeline}
    return difference({key: recorded.get(key) for key in header}, header)


def _refused(task: Task, what: str) -> UserError:
    grow = ""
    if what.startswith("pipeline.inputs") and (task.folder / MANIFEST).is_file():
        grow = f", or set data.sources.{task.name}.grow=true to append what is new"
    return UserError(
        f"source '{task.name}': '{task.folder}' was prepared with other settings or inputs: {what}; "
        f"choose another data.shards or remove the folder{grow}"
    )


def _refuse_other_settings(tasks: list[Task]) -> None:
    """Refuse all folders of other settings now, not each after the work on those before it."""
    problems: list[str] = []
    for task in tasks:
        if not task.folder.exists():
            continue
        journal = Journal(task.folder)
        recorded = _recorded_header(task, journal)
        strangers = [path.name for path in sorted(task.folder.iterdir()) if not _OWN_FILE.fullmatch(path.name)]
        if recorded is None and journal.header is None and strangers:
            problems.append(
                f"source '{task.name}': '{task.folder}' holds files that launch/prepare.py didn't write "
                f"({strangers[0]}); choose another data.shards"
            )
        elif recorded is not None:
            against = recorded["pipeline"]["deduplicated_against"]  # known only once the sources before are done
            header = task.header(task.states(journal), against)
            if task.config.grow and (task.folder / MANIFEST).is_file():
                header["pipeline"]["inputs"] = recorded["pipeline"]["inputs"]
            what = _difference(task, recorded, header)
            if what:
                problems.extend(_refused(task, what).problems)
    if problems:
        raise UserError(problems)


def _complete(task: Task, histories: dict[str, list[str]]) -> PreparedSource | None:
    """The source where it is complete; the sources before it may have grown since."""
    if not (task.folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(task.folder)
    found = manifest["pipeline"]["deduplicated_against"]
    expected = {name: found[name] if found.get(name) in history else history[-1] for name, history in histories.items()}
    what = difference(found, expected, "the sources before it")
    if what:
        raise _refused(task, what)
    return PreparedSource(task.folder, manifest, was_complete=True)


def _grow(
    task: Task,
    complete: PreparedSource,
    against: dict[str, str],
    tasks: list[Task],
    display: PrepareDisplay,
) -> PreparedSource:
    """Append what is new in the inputs as the next generation, if the source may grow and there is something.

    Inputs whose content is recorded are not read again. Documents of any complete source are duplicates. The old files
    stay as they are, and so does the manifest until the new one replaces it.
    """
    manifest = complete.manifest
    if not task.config.grow:
        return complete
    states = task.states(Journal(task.folder))
    recorded = manifest["pipeline"]["inputs"]
    new = [
        (item, state)
        for item, state in zip(task.inputs, states, strict=True)
        if recorded.get(state.file) != {"bytes": state.bytes, "xxh3": state.checksum}
    ]
    if not new:
        return complete
    number = len(whole_fingerprints(manifest))
    first_numbers = {key: len(manifest[key]) for key in _PART_FILES.values()}
    task = replace(task, inputs=[item for item, _ in new], first_numbers=first_numbers)
    header = {
        **task.header([state for _, state in new], against),
        "generation": number,
        "grown_from": manifest["fingerprint"],
    }
    journal = Journal(task.folder, number)
    if journal.header is None or _difference(task, journal.header, header):
        # Work on other inputs than those of now: no manifest names its files, so they can be made anew.
        journal.path.unlink(missing_ok=True)
        journal = Journal(task.folder, number)
        journal.begin({**header, "times": {state.file: state.changed_ns for _, state in new}})
    _remove_strays(task.folder, [_files(journal.parts), manifest])
    seen = set().union(*(_ids(one.folder, read_manifest(one.folder)) for one in tasks if _is_complete(one)))
    counts, columns = _write_source(task, journal, seen, display, labels=manifest.get("columns", {}))
    if counts.kept == 0:
        journal.path.unlink()
        _remove_strays(task.folder, [manifest])
        print(f"source '{task.name}': nothing new to train on in {len(new)} new or changed input(s)", flush=True)
        return complete
    grown = grown_manifest(manifest, _manifest(task, journal, counts, columns))
    write_json(task.folder / MANIFEST, grown)
    print(
        f"source '{task.name}': generation {number} appended, {counts.kept:,} documents of {counts.tokens:,} tokens",
        flush=True,
    )
    return PreparedSource(task.folder, grown, was_complete=False, grew=True)


def _is_complete(task: Task) -> bool:
    return (task.folder / MANIFEST).is_file()


def _remove_strays(folder: Path, lists: list[dict[str, Any]]) -> None:
    """Remove the files of parts cut short: those that none of the manifests' lists of files names."""
    recorded = {entry["file"] for files in lists for key in _PART_FILES.values() for entry in files[key]}
    for path in folder.iterdir():
        if _OWN_FILE.fullmatch(path.name) and path.name not in recorded:
            path.unlink()


def _ids(folder: Path, manifest: dict[str, Any]) -> set[bytes]:
    return recorded_ids(folder, manifest["source"], manifest["shards"], manifest["held_out"])


def _files(parts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The manifest's lists of files from the journal's lines."""
    return {plural: [part[kind] for part in parts if part[kind]] for kind, plural in _PART_FILES.items()}


def _begin(task: Task, against: dict[str, str]) -> Journal:
    """The journal to go on with; files that it doesn't record (of a part cut short) are removed."""
    journal = Journal(task.folder)
    states = task.states(journal)
    header = task.header(states, against)
    if journal.parts and journal.header is not None:
        what = _difference(task, journal.header, header)
        if what:
            raise _refused(task, what)
    _remove_strays(task.folder, [_files(journal.parts)])
    if not journal.parts:
        journal.path.unlink(missing_ok=True)
        journal = Journal(task.folder)
        journal.begin({**header, "times": {state.file: state.changed_ns for state in states}})
    return journal


def _prepare_source(task: Task, against: dict[str, str], seen: set[bytes], display: PrepareDisplay) -> PreparedSource:
    journal = _begin(task, against)
    counts, columns = _write_source(task, journal, seen, display)
    if counts.kept == 0:
        shutil.rmtree(task.folder)
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.dropped.items())) or "none"
        raise UserError(
            f"source '{task.name}': nothing is left to train on (read {counts.read}, held out {counts.held_out}, "
            f"dropped: {reasons}); check data.sources.{task.name}.raw and text_field, data.min_bytes and "
            "data.held_out_fraction"
        )
    manifest = _manifest(task, journal, counts, columns)
    write_json(task.folder / MANIFEST, manifest)
    return PreparedSource(task.folder, manifest, was_complete=False)


def _write_source(
    task: Task,
    journal: Journal,
    seen: set[bytes],
    display: PrepareDisplay,
    labels: Mapping[str, Any] | None = None,
) -> tuple[Counts, Columns]:
    """Write all parts that the journal doesn't have; `labels` is the entry of columns whose vocabulary goes on."""
    display.begin(task.name, task.inputs)
    counts, columns, start = Counts(), task.columns(), (0, 0)
    columns.labels = list((labels or {}).get("label", {}).get("vocabulary", []))
    if journal.parts:
        files = _files(journal.parts)
        seen |= recorded_ids(task.folder, task.name, files["shards"], files["held_out"])
        counts, start = Counts(**journal.parts[-1]["counts"]), tuple(journal.parts[-1]["next"])
        columns.restore(journal.parts[-1])
    display.resumed(counts, start)
    _write_parts(task, journal, counts, columns, _stream(task, seen, start), display.advance)
    return counts, columns


def _stream(task: Task, seen: set[bytes], start: Any) -> Iterator[list[Fate]]:
    if task.config.import_format:
        return imported(task.inputs, task.config.import_column, task.rules, task.tokenizer, seen, start)
    others = task.columns().fields
    if task.curated is not None:
        return batches(curated_fates(task.inputs, task.rules, seen, start, others))
    if task.instructions:
        return batches(instruction_fates(task.inputs, task.instructions, task.rules, seen, start, others))
    return batches(fates(task.inputs, task.rules, seen, start, others))


def _write_parts(
    task: Task,
    journal: Journal,
    counts: Counts,
    columns: Columns,
    stream: Any,
    advance: Callable[[Counts, Fate], None],
) -> None:
    """Tokenise batches of fates and close a part at each `shard_tokens`; `counts`, `columns` go record by record."""
    assert journal.header is not None
    # As the work was begun: a folder has places to cut in all of a generation's shards or in none.
    min_tokens = journal.header["pipeline"].get("cut_min_tokens", 0)
    part = Part(task.tokenizer.dtype)
    fate = None
    for batch in stream:
        texts = [f.document.text for f in batch if f.document and not f.held_out and f.tokens is None]
        encoded = iter(task.tokenizer.encode_with_cuts(texts, min_tokens))
        for fate in batch:
            counts.add(fate)
            if fate.held_out:
                part.hold_out(fate.document)
            elif fate.document:
                tokens, cuts = next(encoded) if fate.tokens is None else (fate.tokens, None)
                part.add(fate.document, tokens, fate.targets, columns=columns.values(fate.values), cuts=cuts)
                counts.tokens += len(part.tokens[-1])
            if part.num_tokens >= task.shard_tokens or part.held_out_bytes >= HELD_OUT_PART_BYTES:
                _close_part(task, journal, part, counts, columns, fate)
                part = Part(task.tokenizer.dtype)
        advance(counts, batch[-1])
    if fate is not None and (part.documents or part.held_out):
        _close_part(task, journal, part, counts, columns, fate)


def _close_part(task: Task, journal: Journal, part: Part, counts: Counts, columns: Columns, last: Fate) -> None:
    files = _files(journal.parts)
    line: dict[str, Any] = {"shard": None, "held_out": None, "provenance": None}
    if part.held_out:
        number = f"{task.first_numbers.get('held_out', 0) + len(files['held_out']):05d}"
        path = task.folder / f"held_out-{number}.jsonl.zst"
        line["held_out"] = write_held_out(path, part, task.name)
    if part.documents:
        number = f"{task.first_numbers.get('shards', 0) + len(files['shards']):05d}"
        path = task.folder / f"provenance-{number}.parquet"
        line["provenance"] = write_provenance(path, part, task.name, task.config.licence, task.config.language)
        line["shard"] = write_shard(task.folder / f"shard-{number}.safetensors", part)
    line |= {"next": [last.next_input, last.next_record], "counts": counts.as_json(), **columns.state()}
    journal.add(line)


def _manifest(task: Task, journal: Journal, counts: Counts, columns: Columns) -> dict[str, Any]:
    """The manifest of all that the journal lists."""
    assert journal.header is not None
    manifest = {key: value for key, value in journal.header.items() if key != "times"}
    number = counts.as_json()
    manifest["counts"] = {key: number[key] for key in ("read", "kept", "held_out", "dropped", "repaired_utf8")}
    manifest.update(tokens=counts.tokens, documents=counts.kept, text_bytes=counts.bytes, **_files(journal.parts))
    manifest.update(columns.manifest())
    manifest["fingerprint"] = fingerprint(manifest)
    return manifest
