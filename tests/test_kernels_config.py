"""The choice of kernels is checked before anything is loaded."""

import pytest

from cpt_dist.kernels_config import KernelsConfig, kernel_problems


@pytest.mark.parametrize(
    ("change", "attention", "message"),
    [
        (
            {"rms_norm": "tritn"},
            "auto",
            "kernels.rms_norm: 'tritn' is unknown; it is model, auto, torch, triton, native or",
        ),
        ({"rope": "liger"}, "auto", "kernels.rope: 'liger' is unknown"),
        ({"linear_cross_entropy": "model"}, "auto", "kernels.linear_cross_entropy: 'model' is unknown"),
        ({"linear_kl": "cut_cross_entropy"}, "auto", "kernels.linear_kl: 'cut_cross_entropy' is unknown; it is auto,"),
        ({"adamw": "model"}, "auto", "kernels.adamw: 'model' is unknown; it is torch, triton or auto"),
        ({"attention": "sdpa"}, "auto", "kernels.attention: 'sdpa' is unknown"),
        ({"attention": "triton"}, "flash_attn", "kernels.attention: 'triton' contradicts model.attention 'flash_attn'"),
    ],
)
def test_a_choice_that_cannot_be_met_is_named(change, attention, message):
    (problem,) = kernel_problems(KernelsConfig(**change), attention)
    assert problem.startswith(message)


def test_the_default_and_every_allowed_value_pass():
    assert kernel_problems(KernelsConfig(), "flash_attn") == []
    assert kernel_problems(KernelsConfig(rms_norm="liger", attention="triton", adamw="auto"), "auto") == []
