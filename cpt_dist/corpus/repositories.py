"""Joins the files of a repository into one document, dependencies first, so that a file stands after what it uses.

It sees many documents, so it is no step; `curation/join.py` calls it on those that are of one repository. The order is
that of DeepSeek-Coder (Guo et al. 2024, arXiv 2401.14196, section 2.2): of the files whose dependencies are
all placed, else of those with the fewest that aren't, the one with the smallest path.
"""

from __future__ import annotations

import heapq
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cpt_dist.corpus.normalise import document_id
from cpt_dist.corpus.step import CuratedDocument

_PYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]+)|import[ \t]+([\w., \t]+))", re.MULTILINE
)
_SCRIPT_IMPORT = re.compile(r"(?:\bfrom|\bimport|\brequire\(|\bimport\()\s*['\"](\.{1,2}/[^'\"\n]+)['\"]")
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]+\"([^\"\n]+)\"", re.MULTILINE)
_JAVA_IMPORT = re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]+?)(?:\.\*)?;", re.MULTILINE)
_RUST_MODULE = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?mod[ \t]+(\w+);", re.MULTILINE)
_SCRIPTS = (".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs")
_C = (".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh")
_COMMENTS = {".py": "#", ".rb": "#", ".sh": "#", ".sql": "--", ".lua": "--", ".yaml": "#", ".yml": "#", ".toml": "#"}
_DEFAULT_COMMENT = "//"


@dataclass(frozen=True)
class Part:
    """Where a document stands in the joined text."""

    document: CuratedDocument
    offset: int
    """Characters before its own text, which follows unchanged."""


@dataclass(frozen=True)
class Joined:
    """A joined document and what it consists of."""

    document: CuratedDocument
    parts: tuple[Part, ...]


def _python(path: str, text: str) -> Iterable[str]:
    folder = posixpath.dirname(path)
    for match in _PYTHON_IMPORT.finditer(text):
        source, names, modules = match.groups()
        if modules:
            bases = [(module.split(" as ")[0].strip(), "") for module in modules.split(",")]
        else:
            imported = [name.split(" as ")[0].strip(" ()\n\t\\") for name in names.split(",")]
            bases = [(source, ""), *((source, name) for name in imported if name)]
        for module, name in bases:
            dots = len(module) - len(module.lstrip("."))
            start = folder
            for _ in range(dots - 1):
                start = posixpath.dirname(start)
            stem = "/".join(filter(None, [start if dots else "", *module[dots:].split("."), name]))
            for place in (stem,) if dots else (stem, posixpath.join("src", stem)):
                yield f"{place}.py"
                yield f"{place}/__init__.py"


def _candidates(path: str, text: str) -> Iterable[str]:
    """Paths that a file may mean by what it imports; most of them don't exist."""
    folder, ending = posixpath.dirname(path), posixpath.splitext(path)[1]
    if ending == ".py":
        yield from _python(path, text)
    elif ending in _SCRIPTS:
        for name in _SCRIPT_IMPORT.findall(text):
            stem = posixpath.normpath(posixpath.join(folder, name))
            yield stem
            for known in _SCRIPTS:
                yield f"{stem}{known}"
                yield f"{stem}/index{known}"
    elif ending in _C:
        for name in _INCLUDE.findall(text):
            yield posixpath.normpath(posixpath.join(folder, name))
            yield name
            yield posixpath.join("include", name)
            yield posixpath.join("src", name)
    elif ending == ".java":
        for name in _JAVA_IMPORT.findall(text):
            inner = name.replace(".", "/") + ".java"
            for root in ("", "src/", "src/main/java/"):
                yield root + inner
    elif ending == ".rs":
        stem = folder if posixpath.basename(path) in ("mod.rs", "lib.rs", "main.rs") else posixpath.splitext(path)[0]
        for name in _RUST_MODULE.findall(text):
            yield posixpath.join(stem, f"{name}.rs")
            yield posixpath.join(stem, name, "mod.rs")


def dependencies(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Path -> the other paths of the repository that it imports, sorted (Python, JavaScript, C, C++, Java, Rust)."""
    return {
        path: sorted({name for name in _candidates(path, text) if name in texts and name != path})
        for path, text in texts.items()
    }


def dependency_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """All paths, each after those that it needs; in a cycle the one with the fewest left begins."""
    left = {path: set(others) for path, others in needs.items()}
    users: dict[str, list[str]] = {path: [] for path in needs}
    for path, others in needs.items():
        for other in others:
            users[other].append(path)
    order: list[str] = []
    waiting = [(len(others), path) for path, others in left.items()]
    heapq.heapify(waiting)
    while waiting:
        _, path = heapq.heappop(waiting)
        if path not in left:
            continue  # it was pushed again with fewer, and is placed already
        order.append(path)
        del left[path]
        for user in users[path]:
            if user in left:
                left[user].discard(path)
                heapq.heappush(waiting, (len(left[user]), user))
    return order


def join_repository(name: str, files: Sequence[CuratedDocument]) -> Joined:
    """One document of the files of a repository (`place` is the path) by dependencies, each under a comment with it.

    Files with one path follow each other in their order, as pieces of a file that was cut do. The result is that of
    `join` and doesn't depend on the order of files with different paths.
    """
    by_path: dict[str, list[CuratedDocument]] = {}
    for file in files:
        by_path.setdefault(str(file.place), []).append(file)
    texts = {path: "\n".join(one.text for one in found) for path, found in sorted(by_path.items())}
    pieces: list[tuple[str, CuratedDocument, str]] = []
    for path in dependency_order(dependencies(texts)):
        marker = _COMMENTS.get(posixpath.splitext(path)[1], _DEFAULT_COMMENT)
        for file in by_path[path]:
            end = "\n" if file.text.endswith("\n") else "\n\n"
            pieces.append((f"{marker} {path}\n", file, end))
    return join(name, pieces)


def join(name: str, pieces: Sequence[tuple[str, CuratedDocument, str]]) -> Joined:
    """One document of several, with what stands before and after each of them.

    Its id is that of the joined text and `group` is `name`. Counts are summed, scores are means weighted by the
    characters of the documents that have them, and of the labels those stay that all have. Raises ValueError without
    a document.
    """
    if not pieces:
        raise ValueError(f"'{name}': there is nothing to join")
    documents = [document for _, document, _ in pieces]
    parts: list[Part] = []
    offset, counts = 0, dict[str, int]()
    for before, document, after in pieces:
        parts.append(Part(document, offset + len(before)))
        offset += len(before) + len(document.text) + len(after)
        for key, number in document.counts.items():
            counts[key] = counts.get(key, 0) + number
    text = "".join(before + document.text + after for before, document, after in pieces)
    labels = {
        key: value
        for key, value in documents[0].labels.items()
        if all(document.labels.get(key) == value for document in documents)
    }
    first = documents[0]
    joined = CuratedDocument(
        document_id(text), text, first.source, first.origin, _mean_scores(documents), labels, counts, group=name
    )
    return Joined(joined, tuple(parts))


def _mean_scores(documents: Sequence[CuratedDocument]) -> dict[str, float]:
    sums: dict[str, tuple[float, int]] = {}
    for document in documents:
        length = len(document.text)
        for name, value in document.scores.items():
            if not math.isnan(value):
                total, weight = sums.get(name, (0.0, 0))
                sums[name] = (total + value * length, weight + length)
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
