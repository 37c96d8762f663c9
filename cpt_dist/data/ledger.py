"""What a run has read: python -m cpt_dist.data.ledger run_dir=… steps=1200-1220 | document=ID | text=FILE [json=FILE]

Nothing is recorded sample by sample, because the order is a pure function: the answer is computed from the run's
config.yaml, its shards and the step that metrics.jsonl has reached. Origins come from the shards' provenance tables.
No model, torch or GPU is needed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.data.lookup import Place, find_document, readings_of_place, readings_of_steps, samples_of_step
from cpt_dist.data.masking import TakenDown
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.remote import source_folder
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source, open_verified
from cpt_dist.data.view_names import parse_view, source_of, with_strata
from cpt_dist.data.views import held_out_of, views_of
from cpt_dist.errors import UserError, nearest
from cpt_dist.files import write_json
from cpt_dist.plans_of_run import all_stages

KEYS = ("run_dir", "steps", "document", "text", "shards", "json")
_SHOWN = 40
_NUM_ID_CHARACTERS = 32


@dataclass
class Ledger:
    """A run's order, its sources, and how far it has come."""

    order: SampleOrder
    sources: list[Source]
    steps_done: int
    _provenance: dict[tuple[int, int], Any] = field(default_factory=dict)

    @classmethod
    def open(cls, run_dir: str | Path, shards: str | None = None) -> Ledger:
        """The ledger of a run; `shards` says where its data.shards lies now, if it was moved.

        Raises UserError where the run or a source is missing, and where the shards are not those that the run read.
        """
        from omegaconf import OmegaConf

        path = Path(run_dir) / "config.yaml"
        if not path.is_file():
            raise UserError(f"run_dir: '{path}' does not exist; give the folder of a run that was started")
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), OmegaConf.load(path)))
        used = {name for stage in all_stages(config) for name in stage.mixture}
        config.data.shards = shards or config.data.shards
        problems, sources = [], []
        for name in config.data.sources:
            if name in used:
                try:
                    sources.append(Source.open(source_folder(config.data, name)))
                except UserError as error:
                    problems += error.problems
        if problems:
            raise UserError(problems)
        config.run_dir = str(run_dir)
        records = _records(Path(run_dir) / "metrics.jsonl")
        starts = [record for record in records if record["kind"] in ("run", "resume")]
        views = _as_read(
            starts[-1]["sources"] if starts else None, views_of(sources, config.data.sources, all_stages(config))
        )
        order = sample_order(config, views)
        steps_done = next((record["step"] for record in reversed(records) if "step" in record), 0)
        return cls(order, views, steps_done)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole plan."""
        return sum(stage.num_steps for stage in self.order.stages)

    @property
    def position(self) -> int:
        """Samples that the run has done."""
        return sum(samples_of_step(self.order, self.steps_done)) if self.steps_done else 0

    def document_id(self, place: Place) -> str:
        """Hex id of a document."""
        return self.sources[place.source].doc_ids(place.shard)[place.document].tobytes().hex()

    def origin(self, place: Place) -> dict[str, Any]:
        """Source, licence, language, file, record and byte offset of a document, from the provenance table.

        Raises UserError where that table is missing, altered, or not of this shard.
        """
        source = self.sources[place.source]
        table = self._provenance.get((place.source, place.shard))
        if table is None:
            from pyarrow import parquet

            entry = source.manifest["provenance"][place.shard]
            with open_verified(source.folder, entry, source.name) as handle:
                table = parquet.read_table(handle).to_pydict()
            self._provenance[place.source, place.shard] = table
        row = {column: values[place.document] for column, values in table.items()}
        assert row["doc_id"] == self.document_id(place), "a provenance table lists its shard's documents in their order"
        return {key: row[key] for key in ("source", "licence", "language", "file", "record", "byte")}

    def of_steps(self, first: int, last: int) -> dict[str, Any]:
        """What steps `first` to `last` read: totals by source, and each document with its origin and readings."""
        if not 1 <= first <= last <= self.num_steps:
            raise UserError(f"steps: {first}-{last} must rise within 1 to {self.num_steps}, the steps of this run")
        documents: dict[Place, dict[str, Any]] = {}
        samples: dict[str, set[int]] = {name: set() for name in self.order.source_names}
        joined = dict.fromkeys(self.order.source_names, 0)
        for reading in readings_of_steps(self.order, self.sources, first, last):
            place = reading.place
            if place not in documents:
                stratum = self._stratum(place)
                found = {"document": self.document_id(place), **self.origin(place), **stratum}
                documents[place] = {**found, "tokens": 0, "read": []}
            documents[place]["tokens"] += reading.num_tokens
            documents[place]["read"].append(_as_json(reading))
            seq_len = self.order.stages[self.order.stage_of(reading.sample)].seq_len
            if place.stop - place.start < seq_len:
                joined[self.order.source_names[place.source]] += reading.num_tokens
            samples[self.order.source_names[place.source]].add(reading.sample)
        views = {
            name: {
                "samples": len(samples[name]),
                "documents": sum(place.source == number for place in documents),
                "tokens": sum(d["tokens"] for place, d in documents.items() if place.source == number),
                "joined_tokens": joined[name],
                "licence": self.sources[number].manifest["licence"],
                "role": self.sources[number].role,
            }
            for number, name in enumerate(self.order.source_names)
        }
        return {
            "steps": [first, last],
            "steps_done": self.steps_done,
            "sources": with_strata(views),
            "documents": list(documents.values()),
        }

    def of_document(self, doc_id: str) -> dict[str, Any]:
        """Whether, when and how often a document was read, and when the plan will read it again.

        Raises UserError for an id that isn't one, and for one that no source has, with what was searched.
        """
        if not re.fullmatch(f"[0-9a-fA-F]{{{_NUM_ID_CHARACTERS}}}", doc_id):
            raise UserError(f"document: '{doc_id}' is no id; it has {_NUM_ID_CHARACTERS} hexadecimal characters")
        doc_id = doc_id.lower()
        places = find_document(self.sources, bytes.fromhex(doc_id))
        answer: dict[str, Any] = {
            "document": doc_id,
            "held_out_by": None,
            "taken_down_from": TakenDown(self.order.take_downs).since(bytes.fromhex(doc_id)),
            "places": [],
            "steps_done": self.steps_done,
        }
        if not places:
            return {**answer, "held_out_by": self._held_out_by(doc_id)}
        found = []
        for place in places:
            readings = readings_of_place(self.order, self.sources, place)
            read = [_as_json(reading) for reading in readings if reading.sample < self.position]
            planned = [_as_json(reading) for reading in readings if reading.sample >= self.position]
            tokens = place.stop - place.start
            times = sum(reading["tokens"] for reading in read) / max(1, tokens)
            found.append(
                {
                    **self.origin(place),
                    **self._stratum(place),
                    "tokens": tokens,
                    "times_read": times,
                    "read": read,
                    "planned": planned,
                }
            )
        return {**answer, "places": found}

    def _stratum(self, place: Place) -> dict[str, str]:
        """The name of the stratum or generation that a document is in; nothing where there is none."""
        name = self.order.source_names[place.source]
        return {"stratum": name} if name != source_of(name) else {}

    def _held_out_by(self, doc_id: str) -> str:
        for name in dict.fromkeys(source_of(source.name) for source in self.sources):
            if any(document.id == doc_id for document in held_out_of(self.sources, name)):
                return name
        searched = ", ".join(f"{source.name} ({source.num_documents} documents)" for source in self.sources)
        raise UserError(
            f"document: no source of the run has '{doc_id}', neither to train on nor held out; searched: {searched}. "
            "A document dropped by launch/prepare.py, or with another text after normalisation, has no such id"
        )


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a line torn by a killed process is passed over."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _as_read(read: dict[str, str] | None, views: list[Source]) -> list[Source]:
    """Those of `views` whose generations the run knew; `read` is view -> fingerprint (None: it never started)."""
    if read is None:
        return views
    known = {parse_view(name)[:2] for name in read}
    views = [view for view in views if parse_view(view.name)[:2] in known]
    problems = [
        f"source '{view.name}': the run read {read[view.name]}, '{view.folder}' is {view.fingerprint}: "
        "its shards were made again; give the old ones with shards=FOLDER"
        for view in views
        if read.get(view.name, view.fingerprint) != view.fingerprint
    ]
    if problems:
        raise UserError(problems)
    return views


def _as_json(reading: Any) -> dict[str, int]:
    names = ("step", "sample", "epoch", "row", "start", "stop")
    return {**{name: getattr(reading, name) for name in names}, "tokens": reading.num_tokens}


def _arguments(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    problems = []
    for word in words:
        key, equals, value = word.partition("=")
        if key not in KEYS:
            problems.append(f"there is no key '{key}'; {nearest(key, KEYS)}")
        elif not equals or not value:
            problems.append(f"'{word}' has no value; write it as {key}=VALUE")
        given[key] = value
    if not problems and "run_dir" not in given:
        problems.append("run_dir is missing; give it: run_dir=…")
    if not problems and sum(key in given for key in ("steps", "document", "text")) != 1:
        problems.append("give one of steps=FIRST-LAST, document=ID and text=FILE")
    if "steps" in given and not re.fullmatch(r"\d+(-\d+)?", given["steps"]):
        problems.append(f"steps: '{given['steps']}' is neither a step nor FIRST-LAST; write it like steps=1200-1220")
    if problems:
        raise UserError(problems)
    return given


def _id_of_text(path: str) -> str:
    from cpt_dist.corpus.normalise import document_id, normalise

    try:
        return document_id(normalise(Path(path).read_text(encoding="utf-8"))).hex()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text: '{path}' cannot be read as UTF-8 text ({error})") from error


def main(words: Sequence[str]) -> None:
    """Answer one question and print it; raises UserError for a user's mistake."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    given = _arguments(words)
    ledger = Ledger.open(given["run_dir"], given.get("shards"))
    from cpt_dist.data.ledger_display import show_document, show_steps

    if "steps" in given:
        first, _, last = given["steps"].partition("-")
        answer = ledger.of_steps(int(first), int(last or first))
        show_steps(answer, _SHOWN)
    else:
        answer = ledger.of_document(given["document"] if "document" in given else _id_of_text(given["text"]))
        show_document(answer, _SHOWN)
    if "json" in given:
        write_json(given["json"], answer)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(2)
