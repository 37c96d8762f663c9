"""Documents that are no longer trained on: the user's list, and the ledger entry that it becomes.

An entry keeps its documents in a file of its own beside the ledger, named by its checksum, so that neither the ledger
nor a checkpoint grows with them. That ids are kept and not positions in shards makes an entry hold for shards that are
added later too. What is skipped because of it is in `masking.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write

FOLDER = "take_down"
_MOST_NAMED = 5


@dataclass(frozen=True)
class TakeDown:
    """A ledger entry: from sample `n_start` on, and for good, no token of the documents goes through the model."""

    kind: ClassVar[str] = "take_down"

    n_start: int
    """Global index of the first sample that it acts on; a step boundary."""
    documents: frozenset[bytes] = field(repr=False)
    """Their ids, 16 bytes each."""
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    """Where the list was, and what of it was found, as JSON."""

    @property
    def effect(self) -> dict[str, Any]:
        """The part that the batches depend on."""
        checksum = xxhash.xxh3_64_hexdigest(_content(self.documents))
        return {"n_start": self.n_start, "documents": len(self.documents), "checksum": checksum}

    def record(self) -> dict[str, Any]:
        """The entry as a line of the ledger has it."""
        effect = self.effect
        return {**effect, "file": _file(effect["checksum"]), "reason": self.reason, "evidence": self.evidence}

    def write_documents(self, run_dir: Path) -> None:
        """Keep the documents in the run directory, durably; before the entry is written."""
        path = run_dir / _file(self.effect["checksum"])
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as handle:
            handle.write(_content(self.documents))

    @classmethod
    def from_record(cls, record: dict[str, Any], run_dir: Path) -> TakeDown:
        """The entry of a line of the ledger in `run_dir`; UserError where its file is missing or was altered."""
        path = run_dir / record["file"]
        content = path.read_bytes() if path.is_file() else None
        found = "none (no such file)" if content is None else xxhash.xxh3_64_hexdigest(content)
        if content is None or found != record["checksum"]:
            raise UserError(
                f"'{path}' has checksum {found} but the ledger says {record['checksum']}; restore it from a copy: "
                "it says which documents the run no longer reads"
            )
        documents = frozenset(bytes.fromhex(line) for line in content.decode("ascii").split())
        return cls(record["n_start"], documents, record.get("reason", ""), record.get("evidence", {}))


def _content(documents: Iterable[bytes]) -> bytes:
    return "".join(f"{one.hex()}\n" for one in sorted(documents)).encode("ascii")


def _file(checksum: str) -> str:
    return f"{FOLDER}/{checksum}.txt"


def read_list(path: str | Path) -> frozenset[bytes]:
    """The document ids of a take-down list: 32 hexadecimal characters a line; blank lines and `# …` are passed over.

    Raises UserError where the file can't be read and for every line that is no id.
    """
    what = f"data.take_down: '{path}'"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} cannot be read ({error}); give a text file with one document id a line") from error
    ids, wrong = set(), []
    for number, line in enumerate(lines, start=1):
        word = line.partition("#")[0].strip()
        if re.fullmatch("[0-9a-fA-F]{32}", word):
            ids.add(bytes.fromhex(word))
        elif word:
            wrong.append(f"{what} line {number}: '{word[:60]}' is no document id; it has 32 hexadecimal characters")
    if wrong:
        more = [f"{what}: {len(wrong) - _MOST_NAMED} more lines are no ids"] if len(wrong) > _MOST_NAMED else []
        raise UserError([*wrong[:_MOST_NAMED], *more])
    return frozenset(ids)


def take_down_problems(entries: Iterable[TakeDown], num_samples: int) -> list[str]:
    """What is wrong with the entries for a run of `num_samples`."""
    return [
        f"take-down at sample {entry.n_start}: it lies outside 0 to {num_samples}"
        for entry in entries
        if not 0 <= entry.n_start <= num_samples
    ]
