"""The texts of an evaluation: whole, in order, within the budget, and read back from their tokens."""

from dataclasses import dataclass

import numpy as np
import pytest
from tokenizers import normalizers

from cpt_dist.errors import UserError
from cpt_dist.evaluation.documents import DocumentEncoder, choose_texts
from tests.evaluation.tiny import save_model, save_tokenizer, text_of, tiny_tokenizer


@dataclass
class Document:
    id: str
    text: str


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return DocumentEncoder(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), tiny_tokenizer()))


@pytest.fixture(scope="module")
def documents():
    generator = np.random.default_rng(0)
    return [Document(f"{i:02}", text_of(generator, 20)) for i in range(10)]


def test_whole_documents_are_taken_in_order_until_the_next_exceeds_the_budget(encoder, documents):
    sizes = [len(encoder.text_tokens(document.text)) for document in documents]
    chosen = choose_texts(documents, encoder, max_tokens=sum(sizes[:4]) + sizes[4] - 1)
    assert [(item.id, item.text) for item in chosen] == [(d.id, d.text) for d in documents[:4]]
    assert not any(item.is_prefix for item in chosen)
    assert len(choose_texts(documents, encoder, max_tokens=sum(sizes))) == len(documents)


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_a_first_document_beyond_the_budget_gives_whole_characters_of_its_beginning(encoder, max_tokens):
    text = "日本語 naïve 日本 café " * 3
    chosen = choose_texts([Document("0", text), Document("1", "a")], encoder, max_tokens)
    assert all(item.is_prefix and text.startswith(item.text) for item in chosen)
    assert len(chosen) == (max_tokens >= len(encoder.text_tokens(text[0])))
    assert sum(len(encoder.text_tokens(item.text)) for item in chosen) <= max_tokens
    assert sum(item.num_bytes for item in chosen) == len("".join(item.text for item in chosen).encode())
    if max_tokens >= 3:
        assert chosen


def test_no_documents_give_no_texts(encoder):
    assert choose_texts([], encoder, 100) == []


def test_a_bos_that_the_tokenizer_adds_is_the_context_and_else_the_separator(tmp_path):
    with_bos = DocumentEncoder(save_model(tmp_path / "bos", bos=True))
    without = DocumentEncoder(save_model(tmp_path / "plain"))
    chosen = DocumentEncoder(tmp_path / "plain", separator="<s>")
    assert (with_bos.context_id, without.context_id, chosen.context_id) == (1, 0, 1)
    assert with_bos.encode("the pain").tolist() == [1, *without.encode("the pain").tolist()[1:]]


def test_a_folder_without_a_usable_tokenizer_is_refused_by_name(tmp_path):
    folder = save_model(tmp_path / "model")
    with pytest.raises(UserError, match="separator: 'nothing' is not in the vocabulary"):
        DocumentEncoder(folder, separator="nothing")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        DocumentEncoder(folder)


def test_text_that_the_tokenizer_changes_is_noticed(encoder, documents, tmp_path):
    assert all(encoder.keeps(document.text) for document in documents)
    lossy = tiny_tokenizer()
    lossy.normalizer = normalizers.Lowercase()
    assert not DocumentEncoder(save_tokenizer(tmp_path, lossy)).keeps("The patient")
