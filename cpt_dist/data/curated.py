"""Curated sources as prepare reads them: documents of the curated folder, with the origin of their raw text.

A document of a shard is what curation left of a raw one, or a chunk of it. Its id is the hash of its text, as that of
any document; whether it is held out hangs on the raw document, so that no two chunks of one lie on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cpt_dist.config import CptConfig, SourceConfig
from cpt_dist.corpus.curation.curate import CuratedFolder, curate
from cpt_dist.corpus.curation.tables import LABEL, SCORE
from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.normalise import document_id, is_held_out
from cpt_dist.corpus.read import read_records
from cpt_dist.data.documents import DUPLICATE, EMPTY, TOO_SHORT, Fate, Rules
from cpt_dist.data.shard_writer import Document
from cpt_dist.errors import UserError

_ORIGIN = ("id", "parent", "file", "record", "byte")


def curate_with_progress(config: CptConfig) -> dict[str, CuratedFolder]:
    """`curate`, with a line of progress for each stage on standard error."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, units: int, rate: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(f"curate: {stage}", total=units, rate="")
            progress.update(bars[stage], completed=done, rate=rate)

        return curate(config, show)


def with_curated_sources(config: CptConfig, folders: Mapping[str, CuratedFolder]) -> tuple[CptConfig, dict[str, str]]:
    """`config` with curated documents in the place of raw ones, and source -> fingerprint of what was curated.

    Raises UserError for sources of which nothing is left.
    """
    problems = [
        f"source '{name}': curation leaves nothing to train on ({done.drops}); see launch/prepare.py what=report, and "
        f"data.sources.{name}.curation"
        for name, done in folders.items()
        if not done.parts
    ]
    if problems:
        raise UserError(problems)
    sources = {
        name: _curated(source, folders[name]) if name in folders else source
        for name, source in config.data.sources.items()
    }
    fingerprints = {name: folder.manifest["fingerprint"] for name, folder in folders.items()}
    return replace(config, data=replace(config.data, sources=sources)), fingerprints


def _curated(source: SourceConfig, folder: CuratedFolder) -> SourceConfig:
    """`source` with its documents and the columns that curation kept for them."""
    scores = {name: SCORE + name for name in folder.shard_scores}
    label = LABEL + "label" if source.label_field else None
    return replace(source, raw=folder.parts, text_field="text", score_fields=scores, label_field=label)


def curated_fates(
    inputs: list[InputFile], rules: Rules, seen: set[bytes], start: tuple[int, int] = (0, 0), others: Sequence[str] = ()
) -> Iterator[Fate]:
    """`documents.fates` of curated documents; a document's origin is that of its raw text."""
    for index in range(start[0], len(inputs)):
        first = start[1] if index == start[0] else 0
        for record in read_records(inputs[index], "text", rules.invalid_utf8, first, [*_ORIGIN, *others]):
            assert record.text is not None, record
            document, reason = None, None
            text = record.text  # to normalise it again would change code, and pieces of documents at their ends
            num_bytes = len(text.encode("utf-8"))
            doc_id = document_id(text)
            origin = record.values
            if not text.strip():
                reason = EMPTY
            elif num_bytes < rules.min_bytes:
                reason = TOO_SHORT
            elif doc_id in seen:
                reason = DUPLICATE
            else:
                seen.add(doc_id)
                document = Document(doc_id, text, num_bytes, origin["file"], origin["record"], origin["byte"])
            whole = bytes.fromhex(origin["parent"] or origin["id"])
            held_out = document is not None and is_held_out(whole, rules.held_out_fraction)
            values = {name: origin[name] for name in others if name in origin}
            yield Fate(index, record.index + 1, None, document, held_out, reason, False, values=values)
