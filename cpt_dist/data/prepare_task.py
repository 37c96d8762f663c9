"""What prepare has to do for each source of a configuration: its inputs, its rules, and the manifest's first part.

Raw files are found and fingerprinted here; none is read as text (`prepare.py` does the work).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig, SourceConfig, parse_quantity
from cpt_dist.corpus.inputs import InputFile, InputState, find_inputs, input_state
from cpt_dist.corpus.token_files import find_token_files
from cpt_dist.data.columns import Columns
from cpt_dist.data.documents import Rules
from cpt_dist.data.instructions import Instructions, instructions_of
from cpt_dist.data.journal import Journal
from cpt_dist.data.remote import is_url
from cpt_dist.data.shards import FORMAT
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError

NORMALISATION = "nfc/1"


@dataclass
class Task:
    """What is to be done for one source."""

    name: str
    config: SourceConfig
    folder: Path
    inputs: list[InputFile]
    rules: Rules
    shard_tokens: int
    tokenizer: DocumentTokenizer
    instructions: Instructions | None
    cut_min_tokens: int
    curated: str | None = None
    """Fingerprint of the curated documents that `inputs` are; None where they are raw files."""
    first_numbers: Mapping[str, int] = field(default_factory=dict)
    """List of the manifest -> files in it of earlier generations, whose numbers are taken."""

    def header(self, states: list[InputState], against: dict[str, str]) -> dict[str, Any]:
        """Everything that the shards depend on; the first part of the manifest.

        `against` maps each earlier source of the run to its fingerprint.
        """
        return {
            "format": FORMAT,
            "source": self.name,
            "role": self.config.role,
            "licence": self.config.licence,
            "language": self.config.language,
            "tokenizer": {
                "fingerprint": self.tokenizer.fingerprint,
                "vocab_size": self.tokenizer.vocab_size,
                "separator_id": self.tokenizer.separator_id,
                "bos_id": self.tokenizer.bos_id,
            },
            "dtype": self.tokenizer.dtype.__name__,
            "pipeline": {
                "normalisation": NORMALISATION,
                **vars(self.rules),
                **({"curation": self.curated} if self.curated else {}),
                **self._import_settings(),
                **(self.instructions.settings if self.instructions else {}),
                **self.columns().settings,
                "shard_tokens": self.shard_tokens,
                **self._cut_settings(),
                "inputs": {state.file: {"bytes": state.bytes, "xxh3": state.checksum} for state in states},
                "deduplicated_against": against,
            },
        }

    def columns(self) -> Columns:
        """The columns of scores and label, empty as yet."""
        return Columns(self.name, self.config.score_fields, self.config.label_field)

    def _import_settings(self) -> dict[str, Any]:
        if self.config.import_format is None:
            return {}
        column = {"import_column": self.config.import_column} if self.config.import_format == "mds" else {}
        return {"normalisation": None, "import_format": self.config.import_format, **column}

    def _cut_settings(self) -> dict[str, Any]:
        if self.config.import_format or self.instructions:  # tokens alone, or text whose parts belong together
            return {}
        return {"cut_min_tokens": self.cut_min_tokens}

    def states(self, journal: Journal) -> list[InputState]:
        """The state of each input now; only those that changed since the journal was begun are read."""
        headers = [journal.header]
        while headers[-1] is not None:  # those of generations that were appended later
            headers.append(Journal(self.folder, len(headers)).header)
        known = {
            name: InputState(name, old["bytes"], header["times"][name], old["xxh3"])
            for header in headers
            if header is not None
            for name, old in header["pipeline"]["inputs"].items()
        }
        return [input_state(item, known.get(str(item.path))) for item in self.inputs]


def plan_tasks(config: CptConfig, curated: Mapping[str, str]) -> list[Task]:
    """The task of each source, in their order; `curated` maps some to the fingerprint of what their files are.

    Raises UserError with every source whose raw files can't be found.
    """
    data = config.data
    if not data.sources:
        raise UserError("data.sources is empty; name at least one source with its raw files (data=…)")
    problems: list[str] = []
    if is_url(data.shards):
        problems.append(f"data.shards: '{data.shards}' is a URL; prepare into a folder, then copy it there")
    found: dict[str, list[InputFile]] = {}
    for name, source in data.sources.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            problems.append(f"data.sources: '{name}' can't name a folder; use letters, digits, '_', '-' and '.'")
        try:
            if source.import_format:
                found[name] = find_token_files(source.raw, source.import_format, f"data.sources.{name}.raw")
                continue
            found[name], passed_over = find_inputs(source.raw, f"data.sources.{name}.raw")
            if passed_over:
                print(
                    f"source '{name}': passed over {len(passed_over)} file(s) of unknown format, first {passed_over[0]}"
                )
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    tokenizer = DocumentTokenizer(data.tokenizer, data.separator)
    shard_tokens = parse_quantity(data.shard_tokens, "data.shard_tokens")
    return [
        Task(
            name=name,
            config=source,
            folder=Path(data.shards) / name,
            inputs=found[name],
            rules=Rules(source.text_field, data.invalid_utf8, data.min_bytes, data.held_out_fraction),
            shard_tokens=shard_tokens,
            tokenizer=tokenizer,
            instructions=instructions_of(name, source, tokenizer, found[name]),
            cut_min_tokens=data.cut_min_tokens,
            curated=curated.get(name),
        )
        for name, source in data.sources.items()
    ]
