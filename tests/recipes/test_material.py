"""What the recipes read: tokens that are the tokenizer's, documents that are held out, pieces that are joined."""

import numpy as np
import pytest

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.token_files import read_token_documents
from cpt_dist.evaluation.documents import DocumentEncoder
from recipes.material import read_documents, split_blocks, tokens_of, write_tokenizer, write_tokens


def test_tokens_are_those_of_the_tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    encoder = DocumentEncoder(tmp_path)
    text = "def f():\n\treturn 'naïve café 日本 \x7f'  # \u00ad\n"
    assert encoder.text_tokens(text) == tokens_of(text)[:-1].tolist()
    assert tokens_of(text)[-1] == encoder.separator_id == 0
    assert encoder.keeps(text)


def test_documents_are_joined_in_their_order(tmp_path):
    documents = [np.arange(n, n + 3, dtype=np.uint16) for n in range(0, 50, 10)]
    for joined, sizes in ((1, [3] * 5), (2, [6, 6, 3]), (16, [15])):
        path = write_tokens(tmp_path / str(joined) / "tokens.ds", documents, joined)
        found = [one.tokens for one in read_token_documents(InputFile(path, "datatrove"), "tokens", 0)]
        assert [len(one) for one in found] == sizes
        assert np.array_equal(np.concatenate(found), np.concatenate(documents))


def test_a_users_text_is_split_into_training_and_held_out_documents(tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "\n".join(f'{{"text": "document number {n:04d} of many"}}' for n in range(100))
    )
    train, held_out = read_documents([str(tmp_path)], 10**6, 10)
    assert (len(train), len(held_out)) == (90, 10)
    assert not set(train) & set(held_out)
    assert read_documents([str(tmp_path)], 10**6, 10) == (train, held_out)
    with pytest.raises(SystemExit, match="give more text"):
        read_documents([str(tmp_path)], 10**6, 1000)


def test_the_standard_library_is_text_enough():
    train, held_out = read_documents([], 500_000, 513)
    assert sum(len(one.encode()) for one in [*train, *held_out]) >= 500_000
    blocks = split_blocks(train, 64, 240)
    assert all(64 <= len(block.encode()) <= 240 for block in blocks)
    assert len(blocks) > 20
