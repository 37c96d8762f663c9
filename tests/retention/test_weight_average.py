"""Averages of weights lie on the way from one model to the other, and models that differ have none."""

import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.model.load import load_model
from cpt_dist.retention.weight_average import average_into
from tests.helpers.models import tiny_llama


def loaded(folder, **changes):
    tiny_llama(folder, **changes)
    return load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_every_weight_goes_that_share_of_the_way(tmp_path, share):
    base, adapted = loaded(tmp_path / "base", seed=1), loaded(tmp_path / "adapted", seed=2)
    before = {name: one.detach().clone() for name, one in base.named_parameters()}
    average_into(base, adapted, share)
    for (name, got), new in zip(base.named_parameters(), adapted.parameters(), strict=True):
        torch.testing.assert_close(got, (1 - share) * before[name] + share * new)


def test_models_of_other_shapes_have_no_average(tmp_path):
    other = loaded(tmp_path / "other", seed=1, intermediate_size=48)
    with pytest.raises(UserError, match=r"shape of 6 tensors, such as 'hf\.model\.layers\.0\.mlp\.down_proj\.weight'"):
        average_into(loaded(tmp_path / "base", seed=1), other, 0.5)


def test_models_with_other_rope_have_no_average(tmp_path):
    other = loaded(tmp_path / "other", seed=1, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(UserError, match="different RoPE"):
        average_into(loaded(tmp_path / "base", seed=1), other, 0.5)
