"""A Hugging Face causal language model that trains on packed documents.

It takes flattened documents with their borders and gives the loss; which words those are, and how the parameters are
spread over ranks, it does not know. The wrapped model is unchanged but for its attention function and its head, so
its weights keep the names that every other tool expects.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cpt_dist.errors import UserError
from cpt_dist.model import flops
from cpt_dist.model.activation_offload import HostOffload
from cpt_dist.model.attention import Documents
from cpt_dist.model.loss_head import LossHead, SoftTargets

PREFIX = "hf."


def hf_name(name: str) -> str:
    """The Hugging Face model's own name of a parameter of `PackedCausalLM`."""
    return name.removeprefix(PREFIX)


class PackedCausalLM(nn.Module):
    """`hf` with packed attention and a `LossHead`; made by `cpt_dist.model.load.load_model`."""

    hf_name = staticmethod(hf_name)

    def __init__(self, hf: Any, attention: str = "auto", loss_chunk_tokens: int = 512) -> None:
        """`hf` is a transformers causal LM. Raises UserError where its head or its layers are of an unknown kind."""
        super().__init__()
        self.hf = hf
        self.attention = attention
        self.kernels: dict[str, int] = {}
        """Operation -> modules whose forward is one of `cpt_kernels` (`model/kernels.py`)."""
        self.config = hf.config.get_text_config()
        head = LossHead.replace(hf.get_output_embeddings(), self.config, loss_chunk_tokens)
        self._num_matmul_parameters = flops.num_matmul_parameters(self, head, self.config)
        self._windows = flops.windows(self.config)

    @property
    def head(self) -> LossHead:
        """The output layer."""
        return self.hf.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None,
        position_ids: Tensor,
        cu_seqlens: Tensor | Documents,
        divisor: float | Tensor = 1.0,
        at: Tensor | None = None,
        soft_targets: SoftTargets | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The loss of flattened documents.

        Args:
            input_ids: int64 [tokens], documents one after the other without padding.
            labels: int64 [tokens], the token that follows in the same document, -100 where there is none. None asks
                for logits instead of the loss.
            position_ids: int64 [tokens], from 0 in each document.
            cu_seqlens: int32 [documents + 1], borders of the documents; or what is made of them, where the tokens are
                those of one rank among several that share the documents (`cpt_dist/engine/context/`).
            divisor: what the sum of the nll is divided by: the target tokens of the whole optimizer step.
            at: int64 [n], without labels: the tokens whose logits are wanted; None asks for those of all.
            soft_targets: what a teacher says of some of the tokens, to be added to the loss.

        Returns (loss 0-d, nll [tokens] without gradient), both fp32, with soft targets and the KL of their tokens [n];
        without labels the logits [tokens or n, vocab] in fp32. Raises UserError where a layer of the model mixes tokens
        past the borders.
        """
        hidden = self.hidden_states(input_ids, position_ids, cu_seqlens)
        if labels is None:
            return self.head.finish(self.head(hidden if at is None else hidden[at]))
        return self.head(hidden, labels, divisor, soft_targets)

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor | Documents) -> Tensor:
        """[tokens, hidden]: what the head gets; arguments as for `forward`."""
        documents = cu_seqlens
        if not isinstance(documents, Documents):
            documents = Documents.of(documents, input_ids.shape[0], self.attention)
        hidden = self.hf.base_model(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            attention_mask=None,
            use_cache=False,
            documents=documents,
        ).last_hidden_state[0]
        self._check_layers(documents)
        return hidden

    def logits(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The logits [tokens, vocab] in fp32; arguments as for `forward`.

        Under FSDP2 register it by `register_fsdp_forward_method`; elsewhere `forward(..., labels=None)` does the same.
        """
        result = self.forward(input_ids, None, position_ids, cu_seqlens)
        assert isinstance(result, Tensor)
        return result

    def _check_layers(self, documents: Documents) -> None:
        used = list(documents.windows_used.values())
        if len(used) != len(self._windows):
            raise UserError(
                f"only {len(used)} of {len(self._windows)} layers of this {self.config.model_type} model attend by "
                "document borders; the others would mix documents, use another model"
            )
        if any(wanted is not None and given is None for wanted, given in zip(self._windows, used, strict=True)):
            raise UserError(
                f"this {self.config.model_type} model has a sliding window that it does not pass on to its attention "
                "function; use another model"
            )

    def decoder_layers(self) -> list[nn.Module]:
        """The repeated blocks of the model, in order: what is checkpointed and sharded one by one.

        Raises UserError where no list of `num_hidden_layers` modules is found.
        """
        for module in self.hf.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.config.num_hidden_layers:
                return list(module)
        raise UserError(f"a {self.config.model_type} model has no list of {self.config.num_hidden_layers} layers")

    def tied_names(self) -> dict[str, str]:
        """Further names of parameters that have one already: `{"lm_head.weight": "model.embed_tokens.weight"}`.

        `named_parameters` gives only the second; a saved model may hold either. Names are those of `hf`.
        """
        first: dict[int, str] = {}
        tied = {}
        for name, parameter in self.hf.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                tied[name] = first[id(parameter)]
            first.setdefault(id(parameter), name)
        return tied

    @property
    def num_parameters(self) -> int:
        """Parameters over all ranks, each tied one once."""
        return sum(flops.whole_numel(parameter) for parameter in self.parameters())

    def flops_per_token(self, seq_len: int) -> float:
        """Operations of forward and backward for a token of documents of `seq_len` tokens, as in `model.flops`."""
        return flops.flops_per_token(self._num_matmul_parameters, self.config, seq_len)

    def enable_activation_checkpointing(self, offload: bool = False) -> None:
        """Recompute each decoder layer in the backward pass, and with `offload` keep its input on the host until then.

        Raises UserError where the architecture cannot.
        """
        if not getattr(self.hf, "supports_gradient_checkpointing", False):
            raise UserError(
                f"model.activation_checkpointing: a {self.config.model_type} model does not support it; set it to false"
            )
        self.hf.activation_checkpointing_enable({"use_reentrant": False})
        if offload:
            host = HostOffload()
            for module in self.hf.modules():
                if hasattr(module, "_gradient_checkpointing_func"):
                    module._gradient_checkpointing_func = host.around(module._gradient_checkpointing_func)
