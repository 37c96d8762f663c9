"""The texts of the example of curation that the medical study doesn't have: licences and code, as they are found.

licences.jsonl (a domain with many copies, contacts and languages): licences and notices of the package
licensedcode-data 32.1.0, pinned by hash (CC-BY-4.0, nexB Inc. and others), without their headers.
code.jsonl: the Python files of packages that this project needs anyway, in the versions that are installed, each with
its repository and path (licences BSD-3-Clause, Apache-2.0 and MIT).
"""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write
from studies.corpora import fetch, write_corpora

PACKAGES = Path(__file__).with_name("curation_packages.txt")
LICENCES = "licensedcode_data-32.1.0-py3-none-any.whl"
_LICENCE = re.compile(r"licensedcode/data/(licenses|rules)/[^/]+\.(LICENSE|RULE)")
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LEAST_CHARACTERS = 200
"""Shorter notices are left out: they are names and fragments."""
REPOSITORIES = ("jinja2", "omegaconf", "hydra", "fsspec", "rich", "networkx")
FEW_REPOSITORIES = 2
"""Of a part of the corpora."""


def fetch_all(folder: Path) -> None:
    """Download the packages of both lists into `folder`. Raises UserError where that fails."""
    fetch(folder)
    fetch(folder, PACKAGES, (LICENCES,))


def licences(folder: Path) -> Iterator[dict[str, str]]:
    """Texts of licences and notices, in the order of their names."""
    with zipfile.ZipFile(folder / LICENCES) as wheel:
        for name in sorted(filter(_LICENCE.fullmatch, wheel.namelist())):
            text = _HEADER.sub("", wheel.read(name).decode(), count=1)
            if len(text) >= LEAST_CHARACTERS:
                yield {"id": name.removeprefix("licensedcode/data/"), "text": text}


def code(packages: Iterable[str] = REPOSITORIES) -> Iterator[dict[str, str]]:
    """The Python files of installed packages, in the order of their paths."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"package '{package}' is not installed; run: pip install -e '.[demo]'")
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder.parent).as_posix()
            yield {"id": relative, "text": path.read_text(encoding="utf-8"), "repository": package, "path": relative}


def write_all(folder: Path, packages: Path, every: int = 1) -> None:
    """Write the five corpora as JSONL into `folder`; of each every `every`-th document, or of the code few packages."""
    write_corpora(folder, packages, every)
    chosen = (one for number, one in enumerate(licences(packages)) if number % every == 0)
    for name, documents in (
        ("licences", chosen),
        ("code", code(REPOSITORIES[: None if every == 1 else FEW_REPOSITORIES])),
    ):
        with atomic_write(folder / f"{name}.jsonl", "w") as handle:
            handle.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
