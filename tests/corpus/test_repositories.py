from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.corpus.normalise import document_id
from cpt_dist.corpus.repositories import dependencies, dependency_order, join, join_repository
from cpt_dist.corpus.step import CuratedDocument, Origin

FILES = {
    "app/main.py": "from app import util\nfrom .models import user\nimport os\n",
    "app/util.py": "import json\n",
    "app/__init__.py": "",
    "app/models/__init__.py": "",
    "app/models/user.py": "from ..util import x\nfrom app.models.base import (\n    Base,\n)\n",
    "app/models/base.py": "class Base: pass\n",
    "web/index.ts": "import { a } from './lib/a';\nconst b = require('./b.js')\n",
    "web/lib/a.ts": "export const a = 1",
    "web/b.js": "module.exports = 2\n",
    "src/x.c": '#include "x.h"\n#include <stdio.h>\n#include "../include/y.h"\n',
    "src/x.h": '#include "y.h"\n',
    "include/y.h": "int y;\n",
    "src/main/java/a/B.java": "import a.C;\n",
    "src/main/java/a/C.java": "package a;\n",
    "r/lib.rs": "mod inner;\npub mod deep;\n",
    "r/inner.rs": "",
    "r/deep/mod.rs": "",
}


def document(path: str, text: str, **values) -> CuratedDocument:
    return CuratedDocument(document_id(text), text, "code", Origin(path, 0), place=path, **values)


def files(texts: dict[str, str]) -> list[CuratedDocument]:
    return [document(path, text, counts={"pii_email": 1}) for path, text in texts.items()]


def test_imports_of_six_languages_are_found():
    needs = dependencies(FILES)
    assert needs["app/main.py"] == ["app/__init__.py", "app/models/__init__.py", "app/models/user.py", "app/util.py"]
    assert needs["app/models/user.py"] == ["app/models/base.py", "app/util.py"]
    assert needs["web/index.ts"] == ["web/b.js", "web/lib/a.ts"]
    assert needs["src/x.c"] == ["include/y.h", "src/x.h"]
    assert needs["src/x.h"] == ["include/y.h"]
    assert needs["src/main/java/a/B.java"] == ["src/main/java/a/C.java"]
    assert needs["r/lib.rs"] == ["r/deep/mod.rs", "r/inner.rs"]


def test_every_file_stands_once_and_after_what_it_uses():
    joined = join_repository("demo", files(FILES))
    order = [part.document.place for part in joined.parts]
    assert sorted(order) == sorted(FILES)
    for path, needed in dependencies(FILES).items():
        assert all(order.index(other) < order.index(path) for other in needed)
    for part in joined.parts:
        assert joined.document.text[part.offset :].startswith(FILES[part.document.place])
    assert joined.document.text.startswith("# app/__init__.py\n")
    assert "// web/b.js\n" in joined.document.text
    assert joined.document.counts == {"pii_email": len(FILES)}
    assert joined.document.id == document_id(joined.document.text)


def test_the_order_of_the_files_does_not_matter():
    given_files = files(FILES)
    random.Random(0).shuffle(given_files)
    assert join_repository("demo", given_files) == join_repository("demo", sorted(given_files, key=lambda f: f.place))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 8).map(str), st.sets(st.integers(0, 8).map(str)), max_size=9))
def test_cycles_are_broken_and_nothing_is_lost(graph):
    needs = {path: sorted(others & set(graph) - {path}) for path, others in graph.items()}
    order = dependency_order(needs)
    assert sorted(order) == sorted(needs)
    for place, path in enumerate(order):
        unmet = set(needs[path]) - set(order[:place])
        rest = order[place:]
        assert len(unmet) == min(len(set(needs[other]) - set(order[:place])) for other in rest)


def test_a_path_that_occurs_twice_stands_twice_and_nothing_cannot_be_joined():
    pieces = [document("b.py", "import a\n"), document("a.py", "one\n"), document("a.py", "two\n")]
    text = join_repository("demo", pieces).document.text
    assert text == "# a.py\none\n\n# a.py\ntwo\n\n# b.py\nimport a\n\n"
    with pytest.raises(ValueError, match="demo"):
        join("demo", [])


def test_scores_of_a_joined_document_are_weighted_by_length_and_labels_those_of_all():
    long = document(
        "a", "xxx", scores={"quality": 1.0, "words": float("nan")}, labels={"language": "en", "content": "code"}
    )
    short = document("b", "y", scores={"quality": 0.0}, labels={"language": "en", "content": "prose"})
    joined = join("demo", [("", long, ""), ("", short, "")]).document
    assert joined.scores == {"quality": 0.75}
    assert joined.labels == {"language": "en"}
