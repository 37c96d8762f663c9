import json
import re
import shutil
from contextlib import contextmanager

import pytest
from safetensors.numpy import load_file, save

from cpt_dist.data.shard_writer import block_checksums
from cpt_dist.data.verify import main
from tests.helpers.file_server import file_server
from tests.helpers.shard_sets import edit_manifest, write_source, write_wide_source
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


def url_of(shards, scheme):
    return shards if scheme == "path" else shards.as_uri()


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_a_whole_set_is_a_table(shards, verified, scheme):
    code, lines, problems = verified(f"shards={url_of(shards, scheme)}")
    assert (code, problems) == (0, [])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    num_bytes = sum(path.stat().st_size for path in (shards / "law").iterdir() if path.name != "manifest.json")
    assert rows[0] == ["law", "domain", "2", "28", "2,401,000", "8", f"{num_bytes:,}"]
    assert rows[1][:3] == ["news", "domain", "1"]


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_every_damage_is_named_at_once_and_what_is_whole_is_in_the_table(shards, verified, scheme):
    write_source(shards / "whole", [[70] * 20])
    big = shards / "law" / "shard-00000.safetensors"
    flip(big, (1 << 20) + 5)
    flip(big, (2 << 20) + 5)
    flip(shards / "law" / "held_out-00001.jsonl.zst", 9)
    flip(shards / "law" / "provenance-00001.parquet", 50)
    (shards / "law" / "shard-00001.safetensors").unlink()
    news = shards / "news" / "shard-00000.safetensors"
    news.write_bytes(news.read_bytes()[:-1])
    code, lines, problems = verified(f"shards={url_of(shards, scheme)}")
    assert code == 2
    assert [line.split("│")[1].strip() for line in lines if line.startswith("│")] == ["whole"]
    wanted = [
        ("shard-00000.safetensors' tokens: 2 blocks (1, 2) have wrong checksums: block 1 has", "but its manifest says"),
        ("shard-00001.safetensors' does not exist; fetch it again",),
        ("held_out-00001.jsonl.zst' block 0 has checksum", "but its manifest says"),
        ("provenance-00001.parquet' block 0 has checksum", "but its manifest says"),
        (f"has {news.stat().st_size} bytes but its manifest says {news.stat().st_size + 1}: it ends within doc_id",),
    ]
    assert len(problems) == len(wanted)
    for problem, parts in zip(problems, wanted, strict=True):
        assert problem.startswith("error: source '")
        assert all(part in problem for part in parts), problem


SECTIONS = ["header", "padding", "doc_offsets", "doc_bytes", "tokens", "doc_id"]


@pytest.fixture(scope="module")
def wide_written(tmp_path_factory):
    return write_wide_source(tmp_path_factory.mktemp("wide") / "law")


@pytest.fixture
def wide(wide_written, tmp_path):
    """A source of one shard with its sections: (path of the shard, section -> (first byte, one past the last))."""
    path = shutil.copytree(wide_written, tmp_path / "shards" / "law") / "shard-00000.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].rstrip(b" ")
    tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
    sections = {"header": (0, 8 + len(header)), "padding": (8 + len(header), start)}
    sections |= {name: tuple(start + at for at in tensor["data_offsets"]) for name, tensor in tensors.items()}
    assert all(last > first for first, last in sections.values())
    return path, sections


@contextmanager
def served_or_not(folder, how):
    """The arguments with which the command reads a folder of shards from the disk, from file:// or over HTTP."""
    if how == "http":
        with file_server(folder) as (url, _):
            yield [f"shards={url}", "sources=law"]
    else:
        yield [f"shards={url_of(folder, how)}"]


@pytest.mark.parametrize("how", ["path", "http"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_flipped_bit_is_named_with_its_section(wide, verified, section, how):
    path, sections = wide
    first, last = sections[section]
    flip(path, (first + last) // 2)
    with served_or_not(path.parents[1], how) as arguments:
        code, _, problems = verified(*arguments)
    assert code == 2
    assert len(problems) == 1
    assert re.search(rf"/law/{path.name}' {section}: block \d+ has checksum \w+ but its manifest says \w+", problems[0])


@pytest.mark.parametrize("at", [0, 3, 7, 8, 9, 30, 60])
def test_any_damage_of_the_header_is_the_headers(wide, verified, at):
    path, _ = wide
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    _, _, problems = verified(f"shards={path.parents[1]}")
    assert len(problems) == 1
    assert f"{path.name}' header: block 0 has checksum" in problems[0]


@pytest.mark.parametrize("how", ["path", "file", "http"])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_file_cut_off_is_named_with_the_section_that_it_ends_in(wide, verified, section, how):
    path, sections = wide
    first, last = sections[section]
    content = path.read_bytes()
    path.write_bytes(content[: (first + last) // 2])
    with served_or_not(path.parents[1], how) as arguments:
        code, _, problems = verified(*arguments)
    assert code == 2
    (problem,) = problems
    cut = f"has {(first + last) // 2} bytes but its manifest says {len(content)}: it ends within {section}"
    lost = SECTIONS[SECTIONS.index(section) + 1 :]
    if section == "header":  # what was behind it is unknown without it
        assert f"{path.name}' {cut}" in problem
    else:
        assert f"{path.name}' {cut}{' and lacks ' + ', '.join(lost) if lost else ''}; fetch it again" in problem


@pytest.mark.parametrize("how", ["path", "file", "http"])
def test_bytes_behind_the_end_are_named(wide, verified, how):
    path, _ = wide
    path.write_bytes(path.read_bytes() + b"xyz")
    with served_or_not(path.parents[1], how) as arguments:
        _, _, problems = verified(*arguments)
    assert len(problems) == 1
    assert "too many at its end" in problems[0]


def test_damage_on_the_way_is_not_damage_of_the_file(wide, verified):
    path, _ = wide
    with file_server(path.parents[1]) as (url, faults):
        faults.plan[path.name] = ["flip", 500]
        assert verified(f"shards={url}", "sources=law")[0] == 0
        faults.plan[path.name] = ["short"]
        assert verified(f"shards={url}", "sources=law")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(tokens=m["tokens"] + 1), "says tokens 1401, but its parts add up to 1400"),
        (lambda m: m.update(documents=19), "says documents 19, but its parts add up to 20"),
        (lambda m: m["counts"].update(held_out=5), "says counts.held_out 5, but its parts add up to 4"),
        (lambda m: m["counts"].update(read=99), "says counts.read 99, but its parts add up to 27"),
        (lambda m: m["tokenizer"].update(vocab_size=7), "beyond its vocabulary of 7"),
        (lambda m: m["tokenizer"].update(fingerprint="0" * 32), "the others' with"),
        (lambda m: m.update(source="other"), "its manifest is of source 'other'"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_named(shards, verified, change, message):
    write_source(shards / "more", [[70] * 20])
    edit_manifest(shards / "news", change)
    code, lines, problems = verified(f"shards={shards}")
    assert code == 2
    assert [line.split("│")[1].strip() for line in lines if line.startswith("│")] == ["law", "more"]
    assert any(message in problem for problem in problems)


def rewrite(folder, change):
    """Change the tensors of a shard and give file and manifest checksums that agree with them."""
    path = folder / "shard-00000.safetensors"
    tensors = load_file(path)
    change(tensors)
    content = save(tensors)
    path.write_bytes(content)
    edit_manifest(folder, lambda m: m["shards"][0].update(bytes=len(content), blocks=block_checksums(content)))


def fall_back(tensors):
    tensors["doc_offsets"][5] = tensors["doc_offsets"][3]


def double_a_document(tensors):
    tensors["doc_id"][1] = tensors["doc_id"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [(fall_back, "doc_offsets don't rise"), (double_a_document, "1 document(s) are in it more than once")],
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
    assert lines == []
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
