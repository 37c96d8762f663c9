"""Documents that belong together become one, in an order that helps, and every raw record is found in it again."""

import json

import pytest

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.normalise import document_id, is_held_out
from cpt_dist.data.curated import with_curated_sources
from cpt_dist.data.prepare import prepare
from tests.corpus.test_curation import NEWS, curated_rows, curation_config, essay, rows_of

MODULE = "def {name}():\n    return '{words}'\n"
REPOSITORIES = {
    name: {
        "pkg/main.py": f"from pkg import util\nimport pkg.base\n\n{MODULE.format(name='main', words=essay(seed, 40))}",
        "pkg/util.py": f"import pkg.base\n\n{MODULE.format(name='util', words=essay(seed + 1, 40))}",
        "pkg/base.py": MODULE.format(name="base", words=essay(seed + 2, 40)),
    }
    for name, seed in (("left", 10), ("right", 20))
}


def lines(records):
    return [json.dumps(record).encode() for record in records]


def code_lines():
    """The files of two repositories in turn, and one of no repository."""
    records = [
        {"text": text, "repo": name, "path": path}
        for place in range(3)
        for name, files in REPOSITORIES.items()
        for path, text in [list(files.items())[place]]
    ]
    return lines([*records, {"text": MODULE.format(name="alone", words=essay(99, 40))}])


def code_config(root, **curation):
    config = curation_config(root, {"law": code_lines(), "news": NEWS})
    config.data.sources["law"].curation = {"profile": "code", "joining": {"by": "repo"}, **curation}
    config.data.curation.block_bytes = "100"  # files of a repository lie in different blocks, and groups in two buckets
    return config


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    return folder, curate(code_config(folder))["law"]


def test_a_repository_becomes_one_document_with_files_after_what_they_import(joined):
    folder, done = joined
    rows = curated_rows(folder, "law")
    assert len(rows) == done.manifest["documents"] == 3
    texts = [row["text"] for row in rows]
    for name, files in REPOSITORIES.items():
        expected = "".join(f"# pkg/{one}.py\n{files[f'pkg/{one}.py']}\n" for one in ("base", "util", "main"))
        assert expected in texts, name
    assert MODULE.format(name="alone", words=essay(99, 40)) in texts
    assert len(done.manifest["members"]) > 1
    step = done.manifest["steps"]["joining"]
    assert (step["read"], step["kept"], step["pieces"]) == (7, 7, 3)
    assert done.manifest["notes"]["joined_documents"] == 6


def test_every_member_is_found_in_its_joined_document_and_in_the_raw_file(joined):
    folder, done = joined
    texts = {row["id"]: row["text"] for row in curated_rows(folder, "law")}
    members = rows_of((folder / "curated" / "law").glob("members-*.parquet"))
    assert sum(entry["documents"] for entry in done.manifest["members"]) == len(members) == 6
    raw = (folder / "raw" / "law.jsonl").read_bytes()
    for member in members:
        record = json.loads(raw[member["byte"] :].split(b"\n", 1)[0])
        text = texts[member["document"]][member["offset"] :][: member["characters"]]
        assert text == record["text"]
        assert (member["group"], member["place"]) == (record["repo"], record["path"])


def test_a_joined_document_lies_on_one_side_of_the_split_whole_even_when_it_is_cut(tmp_path):
    config = code_config(tmp_path, chunking={"max_characters": 200})
    config.data.held_out_fraction = 0.5
    folders = curate(config)
    rows = curated_rows(tmp_path, "law")
    by_parent = {}
    for row in rows:
        by_parent.setdefault(row["parent"], []).append(row)
    for parent, pieces in by_parent.items():
        whole = "".join(piece["text"] for piece in sorted(pieces, key=lambda piece: piece["offset"]))
        assert document_id(whole).hex() == parent
    shards = next(one for one in prepare(*with_curated_sources(config, folders)) if one.folder.name == "law")
    trained = {row["doc_id"] for row in rows_of(shards.folder.glob("provenance-*.parquet"))}
    expected = {document_id(row["text"]).hex() for row in rows if not is_held_out(bytes.fromhex(row["parent"]), 0.5)}
    assert trained == expected


@pytest.mark.parametrize(("order", "expected"), [("input", [0, 1, 2]), ("field", [1, 2, 0])])
def test_chapters_follow_each_other_as_asked_and_those_without_a_book_stay_apart(tmp_path, order, expected):
    texts = [essay(seed, 30) for seed in range(4)]
    chapters = [{"text": text, "book": "b", "chapter": n} for text, n in zip(texts, (10, 2, 9), strict=False)]
    config = curation_config(tmp_path, {"law": lines([*chapters, {"text": texts[3], "chapter": 1}]), "news": NEWS})
    joining = {"by": "book", "order": order, "order_field": "chapter", "separator": "\n* * *\n"}
    config.data.sources["law"].curation = {"joining": joining, "quality": {"enabled": False}}
    curate(config)
    found = {row["text"] for row in curated_rows(tmp_path, "law")}
    assert found == {"\n* * *\n".join(texts[place] for place in expected), texts[3]}


def test_settings_of_joining_that_make_no_sense_are_named_together(tmp_path):
    from cpt_dist.corpus.curation.step_lists import curation_problems

    config = code_config(tmp_path, joining={"by": "repo", "order": "size", "order_field": ""})
    problems = curation_problems(config)
    assert [problem.split(":")[0] for problem in problems] == [
        "data.sources.law.curation.joining.order",
        "data.sources.law.curation.joining.order_field",
    ]
