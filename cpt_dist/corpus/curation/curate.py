"""Curation of all sources of a configuration that ask for it, from raw files to a folder of documents for each.

A folder is complete when its manifest is there, and refused where it was made with other settings or inputs. Every
count in it is a sum over the records of units.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig, SourceConfig, parse_quantity
from cpt_dist.corpus.curation.apply import StepCounts
from cpt_dist.corpus.curation.job import (
    CLUSTERS,
    EVALUATION,
    FINISH,
    HELD_OUT,
    JOIN,
    READ,
    SCORE,
    CuratedSource,
    Job,
    Unit,
    read_record,
)
from cpt_dist.corpus.curation.stages import stages_of
from cpt_dist.corpus.curation.step_lists import VERSION, resolved_steps, shard_scores
from cpt_dist.corpus.inputs import CURATED_FORMATS, InputFile, InputState, find_inputs, input_state
from cpt_dist.corpus.read import AnyOf
from cpt_dist.corpus.remote_inputs import find_remote, is_remote
from cpt_dist.corpus.slices import plan_blocks
from cpt_dist.curation_pipeline_config import DecontaminationConfig
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint, write_json
from cpt_dist.work_folder import difference, locked

FORMAT = "cpt_dist-curated/1"
MANIFEST, PLAN, TIMES, DUPLICATES = "manifest.json", "curation.json", "times.json", "duplicates.json"
SUITES = "suites"
"""Folder of evaluation items that come from suites."""
Progress = Callable[[str, int, int, str], None]
"""Called with a stage's name, its units that are done, all of them, and how fast it goes."""


@dataclass(frozen=True)
class CuratedFolder:
    """What a source was curated to."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def parts(self) -> list[str]:
        """The files of curated documents, in their order."""
        return [str(self.folder / part["file"]) for part in self.manifest["parts"]]

    @property
    def drops(self) -> str:
        """Reasons for drops and their documents, in a line."""
        counts: dict[str, int] = {}
        for step in self.manifest["steps"].values():
            for reason, number in step["dropped"].items():
                counts[reason] = counts.get(reason, 0) + number
        return ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items())) or "no record"

    @property
    def shard_scores(self) -> list[str]:
        """The scores that become columns of shards: those of raw fields, and those that the steps' settings name."""
        return sorted({*self.manifest["settings"]["score_fields"], *self.manifest["shard_scores"]})


def curate(config: CptConfig, progress: Progress = lambda stage, done, units, rate: None) -> dict[str, CuratedFolder]:
    """Curate each source with `curation`, all of them together; source -> its folder, empty where none asks for it.

    Raises UserError for raw files that are missing or damaged, a folder made with other settings or inputs or held by
    another process, and for tasks that failed.
    """
    chosen = {name: source for name, source in config.data.sources.items() if source.curation is not None}
    if not chosen:
        return {}
    folder = Path(config.data.curation.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        job, plan = _plan(config, chosen, folder)
        if not all((folder / name / MANIFEST).is_file() for name in chosen):
            from cpt_dist.corpus.curation.execute import run_stage

            for stage in stages_of(job):
                run_stage(job, stage, lambda done, units, rate, name=stage.name: progress(name, done, units, rate))
            _complete(job, plan)
    return {name: CuratedFolder(folder / name, _read_json(folder / name / MANIFEST)) for name in chosen}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _plan(config: CptConfig, chosen: dict[str, SourceConfig], folder: Path) -> tuple[Job, dict[str, Any]]:
    """The job, and what its folder says of it; UserError where the folder says otherwise."""
    data, pipeline = config.data, config.data.curation
    inputs = _inputs(chosen, pipeline.decontamination, data.storage_options)
    times = _read_json(folder / TIMES) if (folder / TIMES).is_file() else {}
    states = {name: [input_state(item, _known(times, item)) for item in items] for name, items in inputs.items()}
    steps = {name: resolved_steps(source.curation or {}, name) for name, source in chosen.items()}
    block_bytes = parse_quantity(pipeline.block_bytes, "data.curation.block_bytes")
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "sources": {
            name: {
                "role": source.role,
                "text_field": source.text_field,
                "score_fields": dict(source.score_fields),
                "label_field": source.label_field,
                "steps": asdict(steps[name]),
            }
            for name, source in chosen.items()
        },
        "invalid_utf8": data.invalid_utf8,
        "held_out_fraction": data.held_out_fraction,
        "block_bytes": block_bytes,
        "near_duplicates": asdict(pipeline.near_duplicates),
        "paragraph_duplicates": asdict(pipeline.paragraph_duplicates),
        "decontamination": {
            key: value
            for key, value in asdict(pipeline.decontamination).items()
            if key not in ("files", "held_out", "suites")
        },
        "inputs": {
            name: {state.file: {"bytes": state.bytes, "xxh3": state.checksum} for state in found}
            for name, found in states.items()
        },
    }
    _refuse_other(folder, plan)
    write_json(folder / TIMES, {state.file: asdict(state) for found in states.values() for state in found})
    if not (folder / PLAN).is_file():
        write_json(folder / PLAN, plan)
    sources = [
        CuratedSource(
            name,
            source.role,
            tuple(plan_blocks(inputs[name], block_bytes)),
            source.text_field,
            steps[name],
            source.score_fields,
            source.label_field,
        )
        for name, source in chosen.items()
    ]
    fields = AnyOf(tuple(pipeline.decontamination.fields))
    for name in (EVALUATION, HELD_OUT):
        if name in inputs:
            blocks = tuple(plan_blocks(inputs[name], block_bytes))
            sources.append(CuratedSource(name, EVALUATION, blocks, fields, None))
    return (
        Job(
            folder=folder,
            sources=tuple(sources),
            pipeline=pipeline,
            block_bytes=block_bytes,
            invalid_utf8=data.invalid_utf8,
            held_out_fraction=data.held_out_fraction,
            fingerprint=fingerprint(plan),
            storage_options=data.storage_options,
            fetch_retries=data.fetch_retries,
        ),
        plan,
    )


def _inputs(
    chosen: dict[str, SourceConfig], evaluation: DecontaminationConfig, options: dict[str, Any]
) -> dict[str, list[InputFile]]:
    found: dict[str, list[InputFile]] = {}
    problems: list[str] = []
    wanted = {name: (source.raw, f"data.sources.{name}.raw") for name, source in chosen.items()}
    if evaluation.files:
        wanted[EVALUATION] = (evaluation.files, "data.curation.decontamination.files")
    if evaluation.held_out:
        wanted[HELD_OUT] = (evaluation.held_out, "data.curation.decontamination.held_out")
    for name, (patterns, key) in wanted.items():
        try:
            local = [pattern for pattern in patterns if not is_remote(pattern)]
            remote = [item for pattern in patterns if is_remote(pattern) for item in find_remote(pattern, key, options)]
            files = find_inputs(local, key, CURATED_FORMATS)[0] if local or not remote else []
            found[name] = [*files, *sorted(remote, key=lambda item: str(item.url))]
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    return found


def _known(times: dict[str, Any], item: InputFile) -> InputState | None:
    recorded = times.get(item.url or str(item.path))
    return InputState(**recorded) if recorded else None


def _refuse_other(folder: Path, plan: dict[str, Any]) -> None:
    if (folder / PLAN).is_file():
        what = difference(_read_json(folder / PLAN), plan)
        if what:
            raise UserError(
                f"curation: '{folder}' was made with other settings or inputs: {what}; choose another "
                "data.curation.folder or remove the folder"
            )
        return
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in (TIMES, SUITES))
    if strangers:
        raise UserError(
            f"curation: '{folder}' holds files that launch/prepare.py didn't write ({strangers[0]}); choose another "
            "data.curation.folder"
        )


def _complete(job: Job, plan: dict[str, Any]) -> None:
    """Write the manifest of each source and remove the work on them."""
    for number, source in enumerate(job.sources):
        units = [unit for unit in job.units if unit.source == number]
        manifest = _manifest(job, source, units, plan)
        if not source.is_evaluation:
            write_json(job.folder / source.name / MANIFEST, manifest)
    if job.pipeline.near_duplicates.enabled:
        write_json(job.folder / DUPLICATES, read_record(job.bucket_stem(CLUSTERS, 0)))
    if not job.pipeline.keep_work:
        shutil.rmtree(job.folder / "work")


def _records(job: Job, source: CuratedSource, units: list[Unit]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, record) of everything that was done to a source, in the order of the stages."""
    for stage in (READ, SCORE, FINISH):
        for unit in units:
            yield stage, read_record(job.stem(stage, unit))
    for number, (owner, _) in enumerate(job.join_units):
        if job.sources[owner] is source:
            yield JOIN, read_record(job.bucket_stem(JOIN, number))


def _manifest(job: Job, source: CuratedSource, units: list[Unit], plan: dict[str, Any]) -> dict[str, Any]:
    steps: dict[str, StepCounts] = {}
    labels: dict[str, dict[str, int]] = {}
    labels_before: dict[str, dict[str, int]] = {}
    notes: dict[str, int] = {}
    columns: dict[str, set[str]] = {"scores": set(), "labels": set(), "counts": set()}
    parts: list[dict[str, Any]] = []
    files: dict[str, list[dict[str, Any]]] = {"dropped": [], "removed": [], "members": []}
    repaired = 0
    for stage, record in _records(job, source, units):
        for name, counts in record["steps"].items():
            steps.setdefault(name, StepCounts()).add(counts)
        if stage == READ:
            repaired += record["repaired_utf8"]
        if stage == SCORE:
            _add_labels(record["labels"], labels_before)
            _add_labels(record["labels_dropped"], labels_before)
        if stage in (FINISH, JOIN):
            parts += record["parts"]
            for kind, entries in files.items():
                entries += [record[kind]] if record.get(kind) else []
            _add_labels(record["labels"], labels)
            _add_up(record, notes, columns)
    check_conservation(source.name, steps)
    manifest = {
        "format": FORMAT,
        "source": source.name,
        "job": job.fingerprint,
        "settings": plan["sources"].get(source.name, {}),
        "inputs": plan["inputs"].get(source.name, {}),
        "repaired_utf8": repaired,
        "steps": {name: counts.as_json() for name, counts in steps.items()},
        "documents": sum(part["documents"] for part in parts),
        "labels": labels,
        "labels_before": labels_before,
        "notes": dict(sorted(notes.items())),
        "columns": {name: sorted(found) for name, found in columns.items()},
        "shard_scores": sorted(columns["scores"] & set(shard_scores(source.steps))) if source.steps else [],
        "parts": parts,
        **files,
    }
    return {**manifest, "fingerprint": fingerprint(manifest)}


def _add_labels(found: dict[str, dict[str, int]], sums: dict[str, dict[str, int]]) -> None:
    for name, values in found.items():
        row = sums.setdefault(name, {})
        for value, number in values.items():
            row[value] = row.get(value, 0) + number


def _add_up(record: dict[str, Any], notes: dict[str, int], columns: dict[str, set[str]]) -> None:
    for name, number in record["notes"].items():
        notes[name] = notes.get(name, 0) + number
    for name, found in record["columns"].items():
        columns[name] |= set(found)


def check_conservation(source: str, steps: dict[str, StepCounts]) -> None:
    """AssertionError unless each step read what the one before it left, and kept or dropped all of that."""
    for name, counts in steps.items():
        assert counts.kept + sum(counts.dropped.values()) == counts.read, (source, name, counts)
    for (before, left), (after, taken) in itertools.pairwise(steps.items()):
        assert left.pieces == taken.read, (source, before, left, after, taken)
