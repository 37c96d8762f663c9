"""PyTorch FSDP2: each decoder layer and the rest of the model sharded along the first axis of every parameter.

HSDP is a mesh of two axes. Parameters, gradients and moments are DTensors, which torch.distributed.checkpoint knows by
itself. One process that computes in fp32 has nothing to gather, cast or reduce: its model stays as it is, since FSDP2
would copy every parameter twice and every gradient once a step; the numbers are the same. The GPU paths (mixed
precision, offload) follow PyTorch's documentation and have not been measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from cpt_kernels import clip_factor
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from cpt_dist.config import EngineConfig, OptimizerConfig
from cpt_dist.data.batch import Batch
from cpt_dist.engine.base import MOMENTS, Engine
from cpt_dist.engine.distributed import World
from cpt_dist.engine.mesh import state_mesh
from cpt_dist.engine.optimizer import TORCH, adamw, parameter_groups, set_learning_rate
from cpt_dist.engine.piecewise_adamw import Place
from cpt_dist.engine.teacher import StepDistillation
from cpt_dist.engine.updates import UpdateHistory
from cpt_dist.engine.weights_from_first import sharded_from_first
from cpt_dist.model.packed import PackedCausalLM


def needs_sharding(world: World, config: EngineConfig, compute_dtype: torch.dtype) -> bool:
    """Whether FSDP2 has anything to do; else the model trains as it is, with the same numbers and checkpoints."""
    return world.size > 1 or compute_dtype != torch.float32 or config.offload


class FsdpEngine(Engine):
    """`model` (fp32, whole on rank 0, whole or on the meta device on the others) becomes sharded in place."""

    name = "fsdp"

    def __init__(
        self,
        model: PackedCausalLM,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        world: World,
        compute_dtype: torch.dtype,
        adamw_kernel: tuple[str, bool] = (TORCH, True),
    ) -> None:
        """`adamw_kernel`: who takes the steps, and whether it is an error if that cannot run."""
        self.world, self.compute_dtype = world, compute_dtype
        self._max_grad_norm = optimizer.max_grad_norm
        self._sharded = needs_sharding(world, config, compute_dtype)
        # Inputs are not cast: they are integers at the root, and casting would copy the document borders in each layer.
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        offload: OffloadPolicy = CPUOffloadPolicy() if config.offload else OffloadPolicy()
        mesh = state_mesh(world, config.shard_size)
        if not self._sharded:
            model.to(world.device)
        else:
            with sharded_from_first(model, world, config.offload):
                # Moves a layer to the device and shards it before the next: no device has to hold the whole model.
                for layer in model.decoder_layers():
                    fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload)
                fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload)
        self.model = model
        groups = parameter_groups(self._named_parameters(), optimizer)
        self._optimizer = adamw(groups, optimizer, *adamw_kernel)
        self.updates = UpdateHistory()
        self._frozen: list[torch.nn.Parameter] = []
        self._make_moments()

    def _make_moments(self) -> None:
        # AdamW makes its state in the first step; a checkpoint of step 0 and a load need it before.
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state[parameter]
                state["step"] = torch.tensor(0.0, device=parameter.device)
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def forward_backward(
        self, batch: Batch, divisor: int, last: bool, distillation: StepDistillation | None = None
    ) -> torch.Tensor:
        self.model.train()
        # FSDP averages gradients over the ranks; the loss is a share of the global sum, so they must add up.
        part = self._own_part(batch)
        soft_targets = self._soft_targets(batch, part, distillation)
        loss, nll, *kl = self.model(**part.inputs, divisor=divisor / self.world.size, soft_targets=soft_targets)
        loss.backward()
        self._add_kl(distillation, kl)
        for parameter in self._frozen:
            parameter.grad = None
        return part.whole(nll)

    def step(self, learning_rate: float, accept: Callable[[float], bool] = math.isfinite) -> float:
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if accept(value):
            if self._optimizer.kernel is not None:
                whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
                self._optimizer.factor = clip_factor(whole, self._max_grad_norm)
            elif self._max_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return value

    @torch.no_grad()
    def nll(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        self.model.eval()
        part = self._own_part_of(input_ids=input_ids, labels=labels, position_ids=position_ids, cu_seqlens=cu_seqlens)
        nll = self.model(**part.inputs, divisor=1.0)[1]
        self._reshard()
        return part.whole(nll)

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        logits = self.model(**self._document_inputs(input_ids), labels=None)
        self._reshard()
        return logits

    @torch.no_grad()
    def logits_at(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        self.model.eval()
        inputs = self._to_device(input_ids=input_ids, position_ids=position_ids, cu_seqlens=cu_seqlens, at=at)
        logits = self.model(**inputs, labels=None)
        self._reshard()
        return logits

    def _reshard(self) -> None:
        # The root keeps its parameters whole for a backward pass; without one, the optimizer's are elsewhere.
        if self._sharded:
            cast(FSDPModule, self.model).reshard()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            for moment in MOMENTS:
                tensors[f"optimizer.{moment}.{name}"] = self._optimizer.state[parameter][moment]
        return tensors

    def state_loaded(self, tensors: dict[str, torch.Tensor], updates: UpdateHistory) -> None:
        # The tensors are the parameters and moments themselves: only the step counts are left to set.
        self.updates = updates
        self._follow_updates()

    def _follow_updates(self) -> None:
        named = self._named_parameters()
        self._frozen = self._named_frozen()
        self._optimizer.follow(self.updates, [Place(name, one, 0, one.numel()) for name, one in named])
