"""Write the demo's corpora as JSONL: python demo/corpora.py OUT

icd10cm.jsonl (the domain): the tabular list of ICD-10-CM from the package simple-icd-10-cm, by category, written as
readable text. The classification is a work of the US government (CDC/NCHS and CMS), in the public domain in
the US; the package is MIT-licensed.
sotu.jsonl (the general text that must not be forgotten): annual messages and State of the Union addresses of the US
presidents from 1790 on, from the package sotu. The speeches are in the public domain; they were collected by the
American Presidency Project (UC Santa Barbara), and the package is MIT-licensed.
addresses.jsonl (for experiment=long_context): the same addresses, each a document of its own, up to 41,000 tokens.
icd10cm_questions.jsonl (for experiment=demo_sft): what each three-character code stands for, as prompt and completion.

Each line is {"id", "text"}, or {"id", "prompt", "completion"}. Neither package is imported, only their data files are
read, so that pandas isn't needed.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write

NOTES = {
    "inclusionTerm": "Also called",
    "includes": "Includes",
    "excludes1": "Never coded together with",
    "excludes2": "Does not include",
    "codeFirst": "Code first",
    "useAdditionalCode": "Use additional code",
    "codeAlso": "Code also",
    "notes": "Note",
    "sevenChrNote": "Seventh character",
}


DOCUMENT_BYTES = 1500
"""Least size at which a document ends. Held-out documents weigh by their bytes: a few huge ones decide nothing."""


def package_data(package: str) -> Path:
    """Folder `data` of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"package '{package}' is not installed; run: pip install -e '.[demo]'")
    return Path(spec.origin).parent / "data"


def _clean(text: str | None) -> str:
    return " ".join((text or "").split())


def _notes(element: ElementTree.Element) -> Iterator[str]:
    for child in element:
        if child.tag in NOTES:
            yield (
                f"{NOTES[child.tag]}: "
                + "; ".join(_clean(note.text).rstrip(".:") for note in child.findall("note"))
                + "."
            )
        elif child.tag == "sevenChrDef":
            meanings = (f"{entry.get('char')} {_clean(entry.text)}" for entry in child.findall("extension"))
            yield "Values of the seventh character: " + "; ".join(meanings) + "."


def _diagnosis(element: ElementTree.Element, depth: int = 0) -> Iterator[str]:
    """Lines of a diagnosis and all below it; each level is indented by two spaces."""
    indent = "  " * depth
    yield f"{indent}{element.findtext('name')} {_clean(element.findtext('desc'))}"
    yield from (f"{indent}  {note}" for note in _notes(element))
    for child in element.findall("diag"):
        yield from _diagnosis(child, depth + 1)


def icd10cm() -> Iterator[dict[str, str]]:
    """Documents of each three-character category, under the headings of its chapter and its section.

    A large category is cut between the diagnoses directly below it; each part repeats the headings.
    """
    file = next(package_data("simple_icd_10_cm").glob("icd10c-tabular*.xml"))
    for chapter in ElementTree.parse(file).getroot().findall("chapter"):
        for section in chapter.findall("section"):
            heading = [f"Chapter {chapter.findtext('name')}: {_clean(chapter.findtext('desc'))}"]
            heading += [f"Section: {_clean(section.findtext('desc'))}", *_notes(section), ""]
            for category in section.findall("diag"):
                code = category.findtext("name")
                title = f"{code} {_clean(category.findtext('desc'))}"
                notes = "\n".join(f"  {note}" for note in _notes(category))
                below = ["\n".join(_diagnosis(child, depth=1)) for child in category.findall("diag")]
                for number, part in enumerate(_grouped(filter(None, [notes, *below]), DOCUMENT_BYTES) or [""]):
                    text = "\n".join([*heading, title, part]).rstrip("\n") + "\n"
                    yield {"id": f"icd10cm/{code}/{number}", "text": text}


def _grouped(blocks: Iterable[str], least_bytes: int) -> list[str]:
    """Consecutive blocks joined by line feeds until they have at least `least_bytes`; the last may be shorter."""
    groups: list[list[str]] = []
    size = least_bytes
    for block in blocks:
        if size >= least_bytes:
            groups.append([])
            size = 0
        groups[-1].append(block)
        size += len(block.encode())
    return ["\n".join(group) for group in groups]


def _speeches() -> Iterator[tuple[str, list[str]]]:
    """Id and paragraphs of each address, in the order of time; the package's other texts are left out."""
    folder = package_data("sotu")
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["is_sotu"] == "True"]
    for row in rows:
        text = (folder / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8")
        yield row["fileid"], list(filter(None, map(str.strip, text.split("\n"))))


def sotu() -> Iterator[dict[str, str]]:
    """Passages of whole paragraphs of each address."""
    for name, paragraphs in _speeches():
        for number, passage in enumerate(_grouped(paragraphs, DOCUMENT_BYTES)):
            yield {"id": f"sotu/{name}/{number}", "text": passage + "\n"}


def addresses() -> Iterator[dict[str, str]]:
    """Whole addresses."""
    for name, paragraphs in _speeches():
        yield {"id": f"address/{name}", "text": "\n".join(paragraphs) + "\n"}


def icd10cm_questions() -> Iterator[dict[str, str]]:
    """A question and its answer for each three-character category."""
    file = next(package_data("simple_icd_10_cm").glob("icd10c-tabular*.xml"))
    for category in ElementTree.parse(file).getroot().iterfind("chapter/section/diag"):
        code = category.findtext("name")
        prompt = f"Question: What does the ICD-10-CM code {code} stand for?\nAnswer:"
        yield {"id": f"question/{code}", "prompt": prompt, "completion": f" {_clean(category.findtext('desc'))}"}


WRITTEN = {"icd10cm": icd10cm, "sotu": sotu, "addresses": addresses, "icd10cm_questions": icd10cm_questions}


def main(out: Path) -> None:
    """Write the files into `out`; one that is there already is left alone."""
    out.mkdir(parents=True, exist_ok=True)
    for name, documents in WRITTEN.items():
        path = out / f"{name}.jsonl"
        if not path.exists():
            with atomic_write(path, "w") as handle:
                handle.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents())
        with open(path, "rb") as lines:
            print(f"{path}: {sum(1 for _ in lines):,} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python demo/corpora.py OUT")
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
