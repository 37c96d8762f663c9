"""Kernels put into a transformers model by exact class, counted, tried out, and taken out again without a trace.

A module's class is exchanged for a subclass of its own whose forward calls `cpt_kernels`; parameters, names and
everything else stay, so engines and exports notice nothing. No function of transformers is replaced for other models. A
class that is not in the lists below is refused rather than guessed at, since a norm that looks alike may scale or round
otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from cpt_kernels import KernelRefusedError, Spec, add_rms_norm, choose, rms_norm, rope, swiglu
from torch import Tensor, nn

from cpt_dist.errors import UserError
from cpt_dist.kernels_config import LAYER_OPERATIONS, MODEL, KernelsConfig
from cpt_dist.model.packed import PackedCausalLM
from cpt_dist.model.self_check import any_attention, first_layer_only

logger = logging.getLogger(__name__)

FAMILIES = (
    "llama.modeling_llama.Llama",
    "mistral.modeling_mistral.Mistral",
    "qwen2.modeling_qwen2.Qwen2",
    "qwen3.modeling_qwen3.Qwen3",
)
PARTS = {"rms_norm": "RMSNorm", "add_rms_norm": "DecoderLayer", "rope": "Attention", "swiglu": "MLP"}
ROTARY = "RotaryEmbedding"
ACTIVATIONS = ("SiLU", "SiLUActivation")
TOLERANCE = 1e-4
TRIAL_TOKENS = 9


@dataclass
class Backends:
    """Name of the backend of each operation of one model; its modules look here at every call."""

    rms_norm: str
    add_rms_norm: str
    rope: str
    swiglu: str


@dataclass
class Installed:
    """Kernels that are in a model, computing by torch until they are activated."""

    counts: dict[str, int]
    """Operation -> modules that were replaced."""
    chosen: dict[str, str]
    """Operation -> the backend that training has."""
    backends: Backends

    def activate(self) -> None:
        """Let the chosen backends compute from now on. Before, the model can be tried on the CPU."""
        for name, backend in self.chosen.items():
            setattr(self.backends, name, backend)


def known_classes(operation: str) -> tuple[str, ...]:
    """Qualified names of the classes whose modules an operation can be put into."""
    return tuple(f"transformers.models.{family}{PARTS[operation]}" for family in FAMILIES)


def install_kernels(model: PackedCausalLM, kernels: KernelsConfig, device: str, dtype: torch.dtype) -> Installed:
    """Put the kernels that `kernels` names into `model`, in place.

    `device` and `dtype` are those of training. Raises UserError where the model has no such modules, has some of
    another class, has another number in one layer than in the next, computes something else with them than without, or
    a backend is refused.
    """
    wanted = {name: getattr(kernels, name) for name in LAYER_OPERATIONS if getattr(kernels, name) != MODEL}
    chosen = {name: _chosen(name, backend, device, dtype, kernels.strict) for name, backend in wanted.items()}
    backends = Backends(**dict.fromkeys(LAYER_OPERATIONS, "torch"))
    if not wanted:
        return Installed({}, {}, backends)
    before = _logits(model)
    counts = {name: _replace(model, name, backends) for name in wanted}
    after = _logits(model)
    if before is not None and after is not None:
        difference = float((after - before).norm() / before.norm())
        if not difference <= TOLERANCE:
            remove_kernels(model)
            raise UserError(
                f"kernels: with {', '.join(wanted)} replaced this {model.config.model_type} model computes something "
                f"else (off by {difference:.1e}); set them to {MODEL}"
            )
    logger.info("kernels: %s", ", ".join(f"{n} of {name} by {chosen[name]}" for name, n in counts.items()))
    return Installed(counts, chosen, backends)


def remove_kernels(model: PackedCausalLM) -> int:
    """Give every module its own class back; gives how many had another. To be called before an engine wraps them."""
    removed = 0
    for module in model.modules():
        original = vars(type(module)).get("cpt_original")
        if original is not None:
            module.__class__ = original
            removed += 1
    return removed


def _chosen(operation: str, wanted: str, device: str, dtype: torch.dtype, strict: bool) -> str:
    try:
        spec = Spec(device, str(dtype).removeprefix("torch."))
        return choose(operation, wanted, spec, strict, record=False).name
    except KernelRefusedError as error:
        raise UserError(f"kernels.{operation}: '{wanted}': {error}; set it to auto or {MODEL}") from None


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _of_kind(module: nn.Module, part: str) -> bool:
    """Whether a module is, or looks as if it were, of a kind such as RMSNorm."""
    return type(module).__name__.endswith(part) and "cpt_original" not in vars(type(module))


def _replace(model: PackedCausalLM, operation: str, backends: Backends) -> int:
    part, known = PARTS[operation], known_classes(operation)
    layers = model.decoder_layers()
    found = [module for module in model.hf.modules() if _of_kind(module, part)]
    strange = sorted({_name(module) for module in found if _name(module) not in known})
    if strange or not found:
        what = f"modules of class {', '.join(strange)}" if strange else f"no module of a class like {known[0]}"
        raise UserError(
            f"kernels.{operation}: this {model.config.model_type} model has {what}, which it is not written for; "
            f"set it to {MODEL}"
        )
    for module in found:
        _check_options(module, operation, model.config.model_type)
    inside = [sum(_of_kind(module, part) for module in layer.modules()) for layer in layers]
    if len(set(inside)) != 1 or inside[0] == 0:
        raise UserError(
            f"kernels.{operation}: the layers of this {model.config.model_type} model have {inside} modules of class "
            f"{_name(found[0])}, which should be the same number in each; set it to {MODEL}"
        )
    for module in found:
        _exchange(module, _forward(operation, type(module)), backends)
    if operation == "add_rms_norm":
        for norm in (module.get_submodule("post_attention_layernorm") for module in found):
            if "cpt_original" not in vars(type(norm)):
                _exchange(norm, _norm_forward, backends)
    if operation == "rope":
        rotary = [module for module in model.hf.modules() if _of_kind(module, ROTARY)]
        for module in rotary:
            _exchange(module, _fp32_tables(type(module)), backends)
    return len(found)


def _check_options(module: nn.Module, operation: str, model_type: str) -> None:
    if operation == "swiglu" and type(module.act_fn).__name__ not in ACTIVATIONS:
        name = type(module.act_fn).__name__
        raise UserError(f"kernels.swiglu: the MLPs of this {model_type} model use {name}, not SiLU; set it to {MODEL}")
    if operation == "rope" and "apply_rotary_pos_emb" not in _plain(type(module).forward).__code__.co_names:
        raise UserError(
            f"kernels.rope: the attention of this {model_type} model turns queries and keys in another way; "
            f"set it to {MODEL}"
        )


def _exchange(module: nn.Module, forward: Callable[..., Any], backends: Backends) -> None:
    original = type(module)
    content = {"forward": forward, "cpt_original": original, "cpt_backends": backends}
    module.__class__ = type(f"Kernel{original.__name__}", (original,), content)


def _forward(operation: str, original: Any) -> Any:
    if operation == "rope":
        return _with_own_rope(_plain(original.forward))
    return {"rms_norm": _norm_forward, "add_rms_norm": _layer_forward, "swiglu": _mlp_forward}[operation]


def _norm_forward(self: Any, hidden_states: Tensor, residual: Tensor | None = None) -> Any:
    """An RMSNorm [..., hidden]; with a residual that is added first it gives (sum, norm)."""
    weight, epsilon, backends = self.weight, self.variance_epsilon, self.cpt_backends
    if residual is None:
        return rms_norm(hidden_states, weight, epsilon, backend=backends.rms_norm)
    return add_rms_norm(hidden_states, residual, weight, epsilon, backend=backends.add_rms_norm)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    """A gated MLP [..., hidden]."""
    return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), self.cpt_backends.swiglu))


def _layer_forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """A pre-norm decoder layer; its second norm adds the residual."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    # Through the norm as a module, so that an engine's hooks make its weight whole.
    total, normed = self.post_attention_layernorm(attended, hidden_states)
    return total + self.mlp(normed)


def _plain(forward: Any) -> FunctionType:
    """A method without its decorators."""
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    assert isinstance(forward, FunctionType)
    return forward


def _with_own_rope(forward: FunctionType) -> Callable[..., Any]:
    """The same code of an attention, for which `apply_rotary_pos_emb` is our operation."""

    def attend(self: Any, *arguments: Any, **named: Any) -> Any:
        def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            return _turned(query, key, cos, sin, self.cpt_backends.rope)

        code, defaults = forward.__code__, forward.__defaults__
        own = {**forward.__globals__, "apply_rotary_pos_emb": turn}
        function = FunctionType(code, own, forward.__name__, defaults, forward.__closure__)
        function.__kwdefaults__ = forward.__kwdefaults__
        return function(self, *arguments, **named)

    return attend


def _turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """As transformers' `apply_rotary_pos_emb` for [batch, heads, tokens, head_dim] and tables [batch, tokens, dims]."""
    half = cos.shape[-1] // 2
    # Between the projections and attention nothing else reads these gradients.
    pairs = [
        rope(q, k, c[:, :half].to(_exact(q)), s[:, :half].to(_exact(q)), overwrite_gradients=True, backend=backend)
        for q, k, c, s in zip(query, key, cos.expand(len(query), -1, -1), sin.expand(len(query), -1, -1), strict=True)
    ]
    if len(pairs) == 1:
        return pairs[0][0][None], pairs[0][1][None]
    return torch.stack([one for one, _ in pairs]), torch.stack([one for _, one in pairs])


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fp32_tables(original: Any) -> Callable[..., Any]:
    def tables(self: Any, x: Tensor, *arguments: Any, **named: Any) -> Any:
        # transformers rounds its tables to the dtype of x, and reads nothing else of it.
        return original.forward(self, x.new_empty(0, dtype=torch.float32), *arguments, **named)

    return tables


@torch.no_grad()
def _logits(model: PackedCausalLM) -> Tensor | None:
    """Logits of a dozen tokens in two documents; None where the weights are not here."""
    if any(parameter.numel() == 0 or parameter.is_meta for parameter in model.parameters()):
        return None
    device = next(model.parameters()).device
    tokens = torch.arange(TRIAL_TOKENS, device=device)
    borders = torch.tensor([0, 4, TRIAL_TOKENS], dtype=torch.int32, device=device)
    positions = torch.where(tokens < 4, tokens, tokens - 4)
    with first_layer_only(model), any_attention(model):
        return model.logits(tokens * 7 % model.config.vocab_size, positions, borders)


def effective_attention(kernels: KernelsConfig, attention: str) -> str:
    """What `kernels.attention` says, or where it says nothing `model.attention`."""
    return attention if kernels.attention is None else kernels.attention
