"""Answers with a cache are those of transformers without our loop around it."""

import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.answering import Answer, CachedAnswerer, chosen_score, continuation_tokens
from cpt_dist.evaluation.long_context.answering import written_score as written
from cpt_dist.evaluation.long_context.items import Item
from cpt_dist.model.load import load_model
from tests.evaluation.tiny import save_model, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def item(prompt, candidates, answers=("nothing that a random model writes",), room=12, lead=" "):
    return Item("kv", 200, 0, prompt, lead, tuple(answers), tuple(candidates), 0, room, 0.5)


def plain_log_likelihood(encoder, model, prompt, continuation):
    """Of `continuation` by one forward over the whole text, without a cache."""
    whole = encoder.encode(prompt + continuation)
    alone = encoder.encode(prompt)
    common = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
    with torch.no_grad():
        logits = model(torch.from_numpy(whole)[None], use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(common, len(whole)))


def test_likelihoods_and_writing_are_those_of_the_plain_model(folder):
    encoder, model = DocumentEncoder(folder), tiny_model()
    prompt = "the patient has acute pain of lower back and was given a p"
    asked = item(prompt, ["ain", " dose", "ati", " café syrup"], lead="")
    answer = CachedAnswerer(model, encoder)(asked)
    expected = [plain_log_likelihood(encoder, model, prompt, one) for one in asked.candidates]
    assert answer.log_likelihoods == pytest.approx(expected, abs=1e-4)
    tokens = torch.from_numpy(encoder.encode(prompt))[None]
    written = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)
    new = written[0, tokens.shape[1] :].tolist()
    assert answer.text == encoder.decode(new[: new.index(0)] if 0 in new else new)


def test_a_candidate_that_the_tokenizer_joins_with_the_prompt_changes_the_prompts_tokens(folder):
    encoder = DocumentEncoder(folder)
    replaced, tokens = continuation_tokens(encoder, "acute p", "ain")
    assert replaced >= 1
    kept = encoder.text_tokens("acute p")
    assert encoder.text_tokens("acute pain") == kept[: len(kept) - replaced] + tokens


def test_a_packed_model_answers_after_its_attention_is_switched(folder):
    encoder = DocumentEncoder(folder)
    packed = load_model(ModelConfig(path=str(folder))).eval()
    packed.hf.set_attn_implementation("sdpa")
    asked = item("the patient has", [" pain", " dose"])
    found = CachedAnswerer(packed.hf, encoder)(asked)
    expected = CachedAnswerer(tiny_model(), encoder)(asked)
    assert found.text == expected.text
    assert found.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-5)


def test_writing_is_left_out_where_it_is_not_asked_for(folder):
    answer = CachedAnswerer(tiny_model(), DocumentEncoder(folder), generate=False)(item("the patient", [" a", " b"]))
    assert answer.text is None


def test_strings_are_matched_without_regard_to_case_and_in_part():
    asked = item("", [], answers=("Quiet-Harbor", "brave-owl"))
    assert written(asked, "They are quiet-harbor, and brave-eagle.") == 0.5


def test_a_tie_of_candidates_counts_for_its_share():
    assert chosen_score(Answer(None, (-1.0, -1.0, -2.0, -1.0))) == pytest.approx(1 / 3)
    assert chosen_score(Answer(None, (-1.5, -1.0))) == 0
