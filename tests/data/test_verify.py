import json
import shutil

import pytest
from safetensors.numpy import load_file, save

from cpt_dist.data.shard_writer import block_checksums
from cpt_dist.data.verify import main
from tests.helpers.shard_sets import edit_manifest, write_source
from tests.helpers.tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_source(folder / "law", [[300_000] * 8, [50] * 20])
    write_source(folder / "news", [[70] * 20])
    return folder


@pytest.fixture
def shards(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


@pytest.fixture
def verified(capsys):
    """Runs the command; gives exit code, lines and problems."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_a_whole_set_is_a_line_a_source(shards, verified, scheme):
    code, lines, problems = verified(f"shards={shards if scheme == 'path' else shards.as_uri()}")
    assert (code, problems) == (0, [])
    assert [line.split(";")[0] for line in lines] == ["law: whole", "news: whole"]
    assert "2 shards, 28 documents, 2401000 tokens, 8 held out" in lines[0]


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_every_damage_is_named_at_once(shards, verified, scheme):
    big = shards / "law" / "shard-00000.safetensors"
    flip(big, 5)
    flip(big, (2 << 20) + 5)
    held_out = shards / "law" / "held_out-00001.jsonl.zst"
    flip(held_out, 9)
    flip(shards / "law" / "provenance-00001.parquet", 50)
    (shards / "law" / "shard-00001.safetensors").unlink()
    news = shards / "news" / "shard-00000.safetensors"
    news.write_bytes(news.read_bytes()[:-1])
    code, lines, problems = verified(f"shards={shards if scheme == 'path' else shards.as_uri()}")
    assert code == 2
    assert lines == ["law: 5 problem(s)", "news: 1 problem(s)"]
    wanted = [
        ("shard-00000.safetensors' block 0 has checksum", "but its manifest says"),
        ("shard-00000.safetensors' block 2 has checksum", "but its manifest says"),
        ("shard-00001.safetensors' does not exist", ""),
        ("held_out-00001.jsonl.zst' block 0 has checksum", "but its manifest says"),
        ("provenance-00001.parquet' block 0 has checksum", "but its manifest says"),
        (f"has {news.stat().st_size} bytes but its manifest says {news.stat().st_size + 1}", ""),
    ]
    assert len(problems) == len(wanted)
    for problem, parts in zip(problems, wanted, strict=True):
        assert problem.startswith("error: source '")
        assert all(part in problem for part in parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(tokens=m["tokens"] + 1), "says tokens 1401, but its parts add up to 1400"),
        (lambda m: m.update(documents=19), "says documents 19, but its parts add up to 20"),
        (lambda m: m["counts"].update(held_out=5), "says counts.held_out 5, but its parts add up to 4"),
        (lambda m: m["counts"].update(read=99), "says counts.read 99, but its parts add up to 27"),
        (lambda m: m["tokenizer"].update(vocab_size=7), "beyond its vocabulary 7"),
        (lambda m: m["tokenizer"].update(fingerprint="0" * 32), "the others' with"),
        (lambda m: m.update(source="other"), "its manifest is of source 'other'"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_named(shards, verified, change, message):
    write_source(shards / "more", [[70] * 20])
    edit_manifest(shards / "news", change)
    code, lines, problems = verified(f"shards={shards}")
    assert code == 2
    assert [line for line in lines if "problem" in line] == [f"news: {len(problems)} problem(s)"]
    assert any(message in problem for problem in problems)


def rewrite(folder, change):
    """Change the tensors of a shard and give file and manifest checksums that agree with them."""
    path = folder / "shard-00000.safetensors"
    tensors = load_file(path)
    change(tensors)
    content = save(tensors)
    path.write_bytes(content)
    edit_manifest(folder, lambda m: m["shards"][0].update(bytes=len(content), blocks=block_checksums(content)))


def double_a_boundary(tensors):
    tensors["doc_offsets"][3] = tensors["doc_offsets"][5]


def double_a_document(tensors):
    tensors["doc_id"][1] = tensors["doc_id"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [(double_a_boundary, "document boundaries"), (double_a_document, "1 document(s) are in it more than once")],
)
def test_content_that_its_checksums_agree_with_is_still_looked_at(shards, verified, change, message):
    rewrite(shards / "news", change)
    code, _, problems = verified(f"shards={shards}")
    assert code == 2
    assert len(problems) == 1
    assert message in problems[0]


def test_a_source_without_manifest_or_with_an_altered_one_is_named(shards, verified):
    (shards / "law" / "manifest.json").unlink()
    path = shards / "news" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": 1}))
    code, lines, problems = verified(f"shards={shards}")
    assert code == 2
    assert lines == ["law: 1 problem(s)", "news: 1 problem(s)"]
    assert "so it is not complete" in problems[0]
    assert "was altered" in problems[1]


def test_the_tokenizer_given_must_be_that_of_all(shards, verified, tmp_path):
    folder = tiny_tokenizer(tmp_path / "tokenizer")
    code, _, problems = verified(f"shards={shards}", f"tokenizer={folder}", "sources=news")
    assert code == 2
    assert len(problems) == 1
    assert f"made with tokenizer {'f' * 32}, not " in problems[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "shards is missing"),
        (["shard=x"], "did you mean 'shards'"),
        (["shards=nowhere"], "'nowhere' does not exist"),
        (["shards=http://127.0.0.1:9/x"], "cannot be listed; name its sources"),
    ],
)
def test_a_mistake_is_one_line(verified, arguments, message):
    code, _, problems = verified(*arguments)
    assert (code, len(problems)) == (2, 1)
    assert message in problems[0]


def test_a_folder_that_is_a_source_says_so(shards, verified):
    code, _, problems = verified(f"shards={shards / 'law'}")
    assert code == 2
    assert f"give shards={shards}" in problems[0]
