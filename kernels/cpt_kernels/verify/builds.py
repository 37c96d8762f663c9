"""What is compiled ahead of time: every kernel in the types and sizes of a model of the usual kind.

A build takes its launch settings from the table of its target, so a row that spills or does not fit is found before a
GPU runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cpt_kernels.triton_support import launch_settings, next_power_of_2

TARGETS = ("sm_80", "sm_90", "gfx942")
_FP32_POINTERS = {
    "rstd_pointer",
    "partial_pointer",
    "cos_pointer",
    "sin_pointer",
    "nll_pointer",
    "lse_pointer",
    "largest_pointer",
    "log_total_pointer",
    "word_share_pointer",
    "label_share_pointer",
    "share_pointer",
    "kl_pointer",
    "delta_pointer",
    "factor_pointer",
}
_INTEGER_POINTERS = {
    "labels_pointer": "*i64",
    "positions_pointer": "*i64",
    "first_key_pointer": "*i32",
    "last_query_pointer": "*i32",
}
_FLOATS = {
    "epsilon",
    "weight_offset",
    "scale",
    "plain_scale",
    "softcap",
    "student_scale",
    "teacher_scale",
    "student_softcap",
    "teacher_softcap",
    "inverse_temperature",
    "learning_rate_over_correction",
    "decay",
    "complement1",
    "complement2",
    "root_correction2",
}


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time constants."""

    kernel: str
    module: str
    """Module of `cpt_kernels.jit`."""
    size: int
    """What rows of the launch table are chosen by."""
    constants: dict[str, int | bool | str] = field(default_factory=dict)
    dtype: str = "bf16"
    """Type of the tensors that are not always fp32 or integers: bf16 or fp32."""
    products: bool = False
    """Whether the target has instructions for its matrix products, which must be used."""
    others: dict[str, str] = field(default_factory=dict)
    """Types of single parameters, such as gradients of another dtype."""

    @property
    def label(self) -> str:
        """Unique among all builds."""
        flags = [name.lower() for name, value in self.constants.items() if value is True]
        return ", ".join([f"{self.kernel} {self.dtype} {self.size}", *flags])

    def types(self, parameters: list[str], constants: dict[str, int | bool | str]) -> dict[str, str]:
        """Type of each parameter, as Triton writes it."""
        result = {}
        for name in parameters:
            if name in constants:
                result[name] = "constexpr"
            elif name in self.others:
                result[name] = self.others[name]
            elif name in _INTEGER_POINTERS:
                result[name] = _INTEGER_POINTERS[name]
            elif name.endswith("_pointer"):
                result[name] = "*fp32" if name in _FP32_POINTERS else f"*{self.dtype}"
            else:
                result[name] = "fp32" if name in _FLOATS else "i32"
        return result

    def settings(self, target: str) -> dict[str, int]:
        """Row of the launch table for a target."""
        settings = dict(launch_settings(self.kernel, self.size, target))
        settings.pop("num_programs", None)
        return settings


def _norms(columns: int) -> list[Build]:
    block = next_power_of_2(columns)
    return [
        Build("rms_norm_forward", "rms_norm", block, {"HAS_RESIDUAL": False, "BLOCK": block}),
        Build("rms_norm_forward", "rms_norm", block, {"HAS_RESIDUAL": True, "BLOCK": block}),
        Build("rms_norm_backward", "rms_norm", block, {"HAS_GRAD_SUM": True, "BLOCK": block}),
    ]


def _rope(heads: int, key_heads: int, half: int) -> list[Build]:
    constants = {"QUERY_HEADS": heads, "KEY_HEADS": key_heads, "HALF": half, "REST": 1, "COPY_REST": False}
    size = heads * half
    return [
        Build("rope_turn", "rope", size, {**constants, "HAS_POSITIONS": True, "INVERSE": False}),
        Build("rope_turn", "rope", size, {**constants, "HAS_POSITIONS": False, "INVERSE": True}),
    ]


def _attention(dim: int) -> list[Build]:
    constants: dict[str, int | bool | str] = {"GROUPS": 4, "DIM": dim, "BLOCK_D": dim, "PRECISION": "ieee"}
    kernels = ("attention_forward", "attention_backward_query", "attention_backward_key")
    return [Build(kernel, "attention", dim, constants, products=True) for kernel in kernels]


WORDS = 131072
LOGITS = {"logits_pointer": "*fp32", "gradient_pointer": "*fp32"}
KL = {"student_pointer": "*fp32", "teacher_pointer": "*fp32"}
MASTERS = {"parameter_pointer": "*fp32", "mean_pointer": "*fp32", "square_pointer": "*fp32"}

BUILDS = [
    *_norms(1024),
    *_norms(4096),
    *_norms(8192),
    Build("swiglu_forward", "swiglu", 14336),
    Build("swiglu_backward", "swiglu", 14336),
    *_rope(16, 4, 32),
    *_rope(32, 8, 64),
    *_rope(128, 8, 64),
    Build("cross_entropy_forward", "cross_entropy", WORDS, {"HAS_SOFTCAP": False}, others=LOGITS),
    Build("cross_entropy_forward", "cross_entropy", WORDS, {"HAS_SOFTCAP": True}),
    Build("cross_entropy_backward", "cross_entropy", WORDS, {"HAS_SOFTCAP": False}, others=LOGITS),
    Build("cross_entropy_backward", "cross_entropy", WORDS, {"HAS_SOFTCAP": True}),
    Build(
        "kl_rows",
        "kl",
        WORDS,
        {"HAS_STUDENT_SOFTCAP": False, "HAS_TEACHER_SOFTCAP": False, "WITH_GRADIENT": True},
        others=KL,
    ),
    Build(
        "kl_rows",
        "kl",
        WORDS,
        {"HAS_STUDENT_SOFTCAP": True, "HAS_TEACHER_SOFTCAP": True, "WITH_GRADIENT": True},
        others=KL,
    ),
    Build("adamw_step", "adamw", 1 << 20, others=MASTERS),
    *_attention(64),
    *_attention(128),
]
FAST = ("rms_norm_forward bf16 1024", "cross_entropy_forward bf16 131072, has_softcap", "attention_forward bf16 64")
"""Labels of the builds of the short check."""
