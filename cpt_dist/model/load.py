"""From a model folder to a `PackedCausalLM`, or to one line that says why not.

Everything goes through transformers' AutoModelForCausalLM with remote code off and safetensors only. What transformers
lets pass with a warning is refused here: weights that are missing, and architectures whose packed documents would not
be the same as documents alone.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch
from cpt_kernels.registry import unrecorded
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.kernels_config import KernelsConfig
from cpt_dist.model.attention import IMPLEMENTATION, choose_backend
from cpt_dist.model.chunked_mlp import chunk_mlps
from cpt_dist.model.folder import check_model_folder
from cpt_dist.model.kernels import effective_attention, install_kernels
from cpt_dist.model.packed import PackedCausalLM
from cpt_dist.model.self_check import check_packing

logger = logging.getLogger(__name__)


def load_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    kernels: KernelsConfig | None = None,
    compute: tuple[str, torch.dtype] | None = None,
    weights: bool = True,
) -> PackedCausalLM:
    """The model in `config.path` with weights in `dtype`, on the CPU, in training mode.

    Dropout is set to 0, whatever the model's config says (GPT-2's says 0.1): continued pretraining sees each document
    about once, as the pretraining of current models does, and there is nothing to regularise. The config files that
    are exported keep their values.

    `kernels` says who computes the model's operations, on the device and in the dtype of `compute`; None leaves all
    but the loss to the code of transformers. Without `weights` the model is on the meta device, and is not tried out.

    Raises UserError where the folder is no complete causal LM in safetensors, wants remote code, wants an attention
    backend or a kernel that cannot run here, would compute packed documents differently from documents alone, or has
    no part that `config` wants to save memory in.
    """
    raw = check_model_folder(config.path)
    _check_architecture(config.path, raw)
    kernels = kernels or KernelsConfig()
    device, compute_dtype = compute or ("cuda" if torch.cuda.is_available() else "cpu", dtype)
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        disable_progress_bar()
    attention = _attention(effective_attention(kernels, config.attention), device, kernels.strict)
    try:
        hf_config = AutoConfig.from_pretrained(config.path, local_files_only=True, trust_remote_code=False)
        _check_attention(config.path, hf_config)
        _switch_dropout_off(hf_config)
        hf = _with_weights(config.path, hf_config, dtype) if weights else _without_weights(hf_config, dtype)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"model.path: '{config.path}' does not load: {first_line}; fetch the model again") from error
    model = PackedCausalLM(hf, attention, config.loss_chunk_tokens)
    model.head.backend, model.head.strict = kernels.linear_cross_entropy, kernels.strict
    model.head.distillation_backend = kernels.linear_kl
    model.head.check_backend(device, compute_dtype)
    with unrecorded():  # what the trials run is no choice of the training
        check_packing(model, config.path)
        installed = install_kernels(model, kernels, device, compute_dtype)
        if config.mlp_chunk_tokens:
            chunk_mlps(model.decoder_layers(), model.config, config.mlp_chunk_tokens)
    model.kernels = installed.counts
    if config.activation_checkpointing:
        model.enable_activation_checkpointing(config.activation_offload)
    installed.activate()
    return model.train()


def _with_weights(path: str, hf_config: Any, dtype: torch.dtype) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        attn_implementation=IMPLEMENTATION,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    hf, report = loaded
    _check_weights(path, report)
    return hf


def _without_weights(hf_config: Any, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            hf_config, dtype=dtype, attn_implementation=IMPLEMENTATION, trust_remote_code=False
        )


def _attention(wanted: str, device: str, strict: bool) -> str:
    """`wanted`, or auto where it cannot run and that is no error."""
    if wanted == "auto":
        return wanted
    try:
        # Which dtype a call has is known then; the refusal of fp32 by flash-attn, or of bf16 by C, comes there.
        with unrecorded():
            choose_backend(wanted, device, torch.float32 if wanted == "native" else torch.bfloat16)
    except UserError as error:
        if strict:
            raise
        logger.warning("%s; auto decides", error)
        return "auto"
    return wanted


def _check_architecture(path: str, raw: dict[str, Any]) -> None:
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in raw:
            raise UserError(f"model.path: '{path}' needs its own Python code, which is never run; use another model")
        raise UserError(f"model.path: '{path}': model_type {kind!r} is unknown to this version of transformers")
    architectures = raw.get("architectures") or []
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (architectures and not causal & set(architectures)):
        found = ", ".join(architectures) or kind
        raise UserError(f"model.path: '{path}' holds {found}, no causal language model; give a …ForCausalLM model")


def _check_attention(path: str, hf_config: Any) -> None:
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)]
    if not model_class._supports_attention_backend:
        raise UserError(f"model.path: '{path}': {model_class.__name__} has its own attention; use another model")
    kinds = set(getattr(hf_config.get_text_config(), "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        raise UserError(
            f"model.path: '{path}' has layers of type {', '.join(sorted(kinds))}, in which packed documents would mix; "
            "use another model"
        )


def _switch_dropout_off(hf_config: Any) -> None:
    rates = {
        name: value
        for name, value in hf_config.to_dict().items()
        if isinstance(value, float)
        and value > 0
        and ("dropout" in name or name.endswith("pdrop") or name == "layerdrop")
    }
    for name in rates:
        setattr(hf_config, name, 0.0)
    if rates:
        logger.info("dropout of the model is set to 0: %s", ", ".join(f"{k} was {v}" for k, v in rates.items()))


def _check_weights(path: str, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"model.path: the weights in '{path}' lack {names}; they would be random, fetch the model again"
        )
    if report["unexpected_keys"]:
        logger.warning("weights in %s that the architecture does not use: %s", path, sorted(report["unexpected_keys"]))
