"""FSDP2 and ZeRO-3 on several ranks, of which the first alone holds the model's weights while it is loaded."""

import json

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.conftest import torchrun
from tests.helpers.models import tiny_gpt2, tiny_llama, tiny_qwen2

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
RANKS = 4


def head_apart(folder):
    """A checkpoint with a head of its own, though its config ties the head to the embeddings."""
    tiny_llama(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))


def without_a_layer(folder):
    tiny_llama(folder)
    path = folder / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if ".layers.1.mlp." not in name}
    save_file(weights, path, {"format": "pt"})


MAKERS = {
    "tied, fsdp": tiny_qwen2,
    "untied, hsdp": tiny_llama,
    "learned positions, fsdp": tiny_gpt2,
    "tied, zero": tiny_qwen2,
    "untied, zero": tiny_llama,
    "head apart, fsdp": head_apart,
    "incomplete, fsdp": without_a_layer,
}
WHOLE = [name for name in MAKERS if not name.startswith("incomplete")]
GIVEN = [name for name in WHOLE if not name.startswith("head apart")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each rank: what weights_worker.py writes."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(root / name)
    torchrun(RANKS, "tests.helpers.weights_worker", root)
    return [json.loads((root / f"found-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("model", WHOLE)
def test_every_rank_has_the_weights_and_buffers_of_the_checkpoint(found, model):
    assert [of_rank[model]["different"] for of_rank in found] == [[]] * RANKS
    assert len({of_rank[model]["logits"] for of_rank in found}) == 1


@pytest.mark.parametrize("model", GIVEN)
def test_only_the_first_rank_loads_weights(found, model):
    assert [of_rank[model]["lacking"] for of_rank in found] == [False, True, True, True]


def test_each_rank_loads_a_model_whose_weights_differ_from_its_config(found):
    assert [of_rank["head apart, fsdp"]["lacking"] for of_rank in found] == [False] * RANKS


def test_a_model_that_does_not_load_is_the_same_line_on_every_rank(found):
    problems = [of_rank["incomplete, fsdp"]["problems"] for of_rank in found]
    assert "lack model.layers.1.mlp" in problems[0][0]
    assert problems == [problems[0]] * RANKS
