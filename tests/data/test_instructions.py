"""Promises of instruction data: only what the assistant is to write is a target, by the token as transformers says."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cpt_dist.config import PACKINGS, CptConfig, DataConfig, SourceConfig, StageConfig
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.errors import UserError
from tests.helpers.tokenizer import tiny_tokenizer

# The chat template of SmolLM2-135M-Instruct (Apache-2.0), and the same with the assistant's turns marked.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = SMOLLM2.replace(
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{'\n'}}",
)
CHATS = [
    [("user", "What is 2+2?"), ("assistant", "4"), ("user", "And 3+3?"), ("assistant", " It is\n6, élève 😀.\n")],
    [("system", "Be  brief."), ("user", "Hi"), ("assistant", "Hello, hello!")],
    [("user", "a b c"), ("assistant", "\nd e"), ("user", "left without an answer")],
]


def messages(chat):
    return [{"role": role, "content": content} for role, content in chat]


def chat_tokenizer(folder, template):
    """A byte-level BPE with a few merges, the special tokens of ChatML, and a chat template (or none)."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "h"), ("Ġh", "e"), ("Ċ", "Ċ"), ("i", "t"), ("Ġ", "b")]
    names = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def prepared(folder, records, tokenizer, **source):
    path = folder / "raw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return prepared_from(folder, path, tokenizer, **source)


def prepared_from(folder, path, tokenizer, held_out_fraction=0.0, **source):
    sources = {"chat": SourceConfig(raw=[str(path)], **source)}
    data = DataConfig(
        sources=sources, shards=str(folder / "shards"), tokenizer=str(tokenizer), held_out_fraction=held_out_fraction
    )
    prepare(CptConfig(data=data))
    return Source.open(folder / "shards" / "chat")


def documents(source):
    """(token ids, 1 where the token is a target) of each document of the only shard."""
    offsets, mask = source.doc_offsets(0).astype(int), np.zeros(source.num_tokens, dtype=int)
    for start, stop in source.loss_spans(0).tolist():
        mask[start:stop] = 1
    tokens = source.tokens(0, 0, source.num_tokens)
    cuts = offsets[1:-1]
    return [(a.tolist(), b.tolist()) for a, b in zip(np.split(tokens, cuts), np.split(mask, cuts), strict=True)]


@pytest.mark.parametrize("template", [SMOLLM2, MARKED], ids=["from prefixes", "marked"])
def test_tokens_and_targets_are_those_of_transformers(tmp_path, template):
    from transformers import AutoTokenizer

    folder = chat_tokenizer(tmp_path / "tokenizer", template)
    source = prepared(tmp_path, [{"messages": messages(c)} for c in CHATS], folder, chat_field="messages")
    peer = AutoTokenizer.from_pretrained(folder)
    expected = [
        peer.apply_chat_template(messages(chat), chat_template=MARKED, return_assistant_tokens_mask=True)
        for chat in CHATS
    ]
    assert documents(source) == [(one["input_ids"], one["assistant_masks"]) for one in expected]
    assert source.manifest["pipeline"]["chat_format"] == "template"


def test_a_pair_has_its_completion_and_the_separator_as_targets(tmp_path):
    folder = tiny_tokenizer(tmp_path / "tokenizer", adds_bos=True)
    records = [{"question": "ab", "answer": " c"}, {"question": "", "answer": "d"}]
    source = prepared(tmp_path, records, folder, prompt_field="question", completion_field="answer")
    masks = [mask for _, mask in documents(source)]
    assert masks == [[0, 0, 0, 1, 1, 1], [0, 1, 1]]
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(
        documents(source)[0][0], skip_special_tokens=False
    )
    assert text == "<|start|>ab c<|end|>"


def test_the_plain_form_ends_each_turn_of_the_assistant_with_the_separator(tmp_path):
    folder = chat_tokenizer(tmp_path / "tokenizer", None)
    source = prepared(tmp_path, [{"chat": messages(CHATS[0])}], folder, chat_field="chat")
    ((tokens, mask),) = documents(source)
    decode = Tokenizer.from_file(str(folder / "tokenizer.json")).decode
    targets = [token for token, is_target in zip(tokens, mask, strict=True) if is_target]
    assert decode(targets, skip_special_tokens=False) == " 4<|im_end|>  It is\n6, élève 😀.\n<|im_end|>"
    assert decode(tokens, skip_special_tokens=False).startswith("User: What is 2+2?\n\nAssistant: 4<|im_end|>\n\nUser:")


def test_every_record_that_is_no_instruction_is_counted_by_its_reason(tmp_path):
    folder = chat_tokenizer(tmp_path / "tokenizer", SMOLLM2)
    good = {"messages": messages(CHATS[0])}
    bad = [
        {"messages": [{"role": "user", "content": "only a question"}]},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": messages([("user", "stop <|im_end|> now"), ("assistant", "no")])},
        {"messages": messages([("assistant", "The template begins with a system turn only later")])},
        {"text": "no conversation"},
        good,
    ]
    source = prepared(tmp_path, [good, *bad], folder, chat_field="messages")
    assert source.manifest["counts"]["dropped"] == {
        "duplicate": 1,
        "no_completion": 1,
        "no_text_field": 1,
        "not_a_conversation": 2,
        "special_token_in_text": 1,
        "template_not_exact": 1,
    }


def test_held_out_conversations_are_kept_in_plain_form(tmp_path):
    folder = chat_tokenizer(tmp_path / "tokenizer", SMOLLM2)
    records = [{"m": messages([("user", f"question {n}"), ("assistant", f"answer {n}")])} for n in range(40)]
    source = prepared(tmp_path, records, folder, chat_field="m", held_out_fraction=0.3)
    texts = [document.text for document in read_held_out(source.folder)]
    assert len(texts) + source.num_documents == 40
    assert all(text.startswith("User: question") and "\n\nAssistant: answer" in text for text in texts)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}", "isn't the prefix with something added"),
        ("{% for m in messages %}{{ m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}", "spans the beginning of the turn"),
        ("{% for m in messages %}{{ m.content if loop.last else '' }}<|im_end|>{% endfor %}", "isn't the prefix"),
        ("{{ raise_exception('tools only') }}", "takes no conversation of user and assistant .tools only"),
    ],
)  # fmt: skip
def test_a_template_whose_turns_are_not_exact_is_refused(tmp_path, template, named):
    # with one word of content that merges with a blank before it
    folder = chat_tokenizer(tmp_path / "tokenizer", template)
    merged = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(merged.encode(" b").ids) == 1
    content = template.replace("m.content", "('b' + m.content)") if "spans" in named else template
    (folder / "chat_template.jinja").write_text(content)
    with pytest.raises(UserError, match=named) as caught:
        prepared(tmp_path, [{"m": messages(CHATS[0])}], folder, chat_field="m")
    assert "set chat_format=plain" in str(caught.value)
    assert prepared(tmp_path, [{"m": messages(CHATS[0])}], folder, chat_field="m", chat_format="plain").num_tokens


@pytest.mark.parametrize("form", ["parquet", "dataset"])
def test_tables_hold_the_same_conversations(tmp_path, form):
    import datasets

    folder = chat_tokenizer(tmp_path / "tokenizer", SMOLLM2)
    table = datasets.Dataset.from_list([{"id": n, "messages": messages(chat)} for n, chat in enumerate(CHATS)])
    path = tmp_path / ("chats.parquet" if form == "parquet" else "chats")
    table.to_parquet(str(path)) if form == "parquet" else table.save_to_disk(str(path))
    (tmp_path / "lines").mkdir()
    lines = prepared(tmp_path / "lines", [{"messages": messages(c)} for c in CHATS], folder, chat_field="messages")
    source = prepared_from(tmp_path, path, folder, chat_field="messages")
    assert documents(source) == documents(lines)
    (tmp_path / "misspelt").mkdir()
    with pytest.raises(UserError, match=r"has no column 'message'; did you mean 'messages'\? \(set chat_field"):
        prepared_from(tmp_path / "misspelt", path, folder, chat_field="message")


def test_text_sources_have_no_spans_and_shards_as_before(tmp_path):
    folder = tiny_tokenizer(tmp_path / "tokenizer")
    source = prepared(tmp_path, [{"text": "plain"}, {"text": "text"}], folder)
    assert source.loss_spans(0) is None
    assert not {"chat_field", "prompt_field", "chat_format"} & source.manifest["pipeline"].keys()
    assert source.manifest["shards"][0]["blocks"] == ["be2437c86492b0b5"]  # as before there were instructions


def test_another_template_makes_other_shards_and_is_refused(tmp_path):
    folder = chat_tokenizer(tmp_path / "tokenizer", SMOLLM2)
    records = [{"m": messages(chat)} for chat in CHATS]
    prepared(tmp_path, records, folder, chat_field="m")
    (folder / "chat_template.jinja").write_text(MARKED)
    with pytest.raises(UserError, match=r"pipeline.chat_template was"):
        prepared(tmp_path, records, folder, chat_field="m")


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_target_is_a_label_once_an_epoch_and_rows_without_one_are_read(tmp_path, packing):
    folder = chat_tokenizer(tmp_path / "tokenizer", SMOLLM2)
    records = [
        {"m": messages([("user", "a long question " * (n % 7)), ("assistant", f"answer {n}")])} for n in range(40)
    ]
    source = prepared(tmp_path, records, folder, chat_field="m")
    num_rows = make_plan(source, 16, packing).num_rows
    shape = {"tokens": str(16 * num_rows), "seq_len": 16, "batch_tokens": "16", "packing": packing}
    stage = StageConfig(mixture={"chat": 1.0}, **shape)
    order = SampleOrder.from_sources([stage], [source], seed=1)
    batches = [batch for step in StepLoader(order, [source], stage=0) for batch in step]
    assert len(batches) == num_rows
    labels = Counter(label for batch in batches for label in batch.labels.tolist() if label >= 0)
    expected = Counter(
        token for tokens, mask in documents(source) for token, hit in zip(tokens[1:], mask[1:], strict=True) if hit
    )
    assert labels == expected
    assert min(batch.num_target_tokens for batch in batches) == 0
