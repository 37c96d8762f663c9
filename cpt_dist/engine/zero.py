"""DeepSpeed ZeRO, stages 0 to 3.

The framework owns the learning rate, gradient accumulation and checkpoints, so DeepSpeed is configured without a
scheduler, with one micro-batch a step, and told itself which micro-batch is the last. `zero_state.py` reads and
writes the master weights and moments. The GPU paths (bf16, offload) follow DeepSpeed's documentation and have not been
measured on a GPU.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from cpt_dist.config import ZERO_0_IN_BF16, EngineConfig, OptimizerConfig
from cpt_dist.data.batch import Batch
from cpt_dist.engine.base import Engine
from cpt_dist.engine.distributed import World
from cpt_dist.engine.optimizer import TORCH, adamw, parameter_groups, set_learning_rate
from cpt_dist.engine.teacher import StepDistillation
from cpt_dist.engine.updates import UpdateHistory
from cpt_dist.engine.weights_from_first import lacks_weights, partition_from_first
from cpt_dist.engine.zero_state import ZeroState, zero_state
from cpt_dist.errors import UserError
from cpt_dist.model.chunked_mlp import ChunkedMlp
from cpt_dist.model.packed import PackedCausalLM


def _import_deepspeed(world: World) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Torch 2.13 warns of these two names on each of DeepSpeed's calls, in every run.
    warnings.filterwarnings(
        "ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*", category=FutureWarning
    )
    if world.device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce with g++ at the start of each new machine, whose ranks
        # spin on flags for ever once one of them is killed. gloo notices a lost rank.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, compute_dtype: torch.dtype, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's own configuration for ours; nothing in it is left to `auto`."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if config.offload and config.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": compute_dtype is torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }


class ZeroEngine(Engine):
    """`model` (fp32) is handed to DeepSpeed, which shards it as its stage says.

    It is whole on each rank, or for stage 3 on rank 0 and on the meta device elsewhere.
    """

    name = "zero"

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
        if config.zero_stage == 0 and compute_dtype is torch.bfloat16:
            raise UserError(ZERO_0_IN_BF16)
        deepspeed = _import_deepspeed(world)
        self.world, self.compute_dtype, self.stage = world, compute_dtype, config.zero_stage
        deepspeed.init_distributed(dist_backend="gloo" if world.device.type == "cpu" else "nccl", verbose=False)
        self.model = model
        for module in model.modules():
            if isinstance(module, ChunkedMlp):
                # Its weights are gathered once a call. Else each chunk would gather them, and ranks whose rows have
                # different numbers of chunks would wait for each other for ever.
                deepspeed.utils.set_z3_leaf_module(module, True)
        groups = parameter_groups(self._named_parameters(), optimizer)
        self._adamw = adamw(groups, optimizer, *adamw_kernel)
        self.updates = UpdateHistory()
        self._frozen: list[torch.nn.Parameter] = []
        self._freezes: list[Any] = []
        settings = deepspeed_config(config, optimizer, compute_dtype, world.size)
        if self.stage == 3 and any(world.gather(lacks_weights(model))):
            partition_from_first(deepspeed, model, settings, compute_dtype, world)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=model, optimizer=self._adamw, config=settings)
        self.model = self._engine.module
        self._norm = float("inf")
        self._accept: Callable[[float], bool] = math.isfinite
        if self.stage > 0:
            self._watch_norms()
        self._state: ZeroState = zero_state(self._optimizer, self._named_parameters(), config.zero_stage, world)

    def forward_backward(
        self, batch: Batch, divisor: int, last: bool, distillation: StepDistillation | None = None
    ) -> torch.Tensor:
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over the ranks; the loss is a share of the global sum, so they must add up.
        part = self._own_part(batch)
        soft_targets = self._soft_targets(batch, part, distillation)
        loss, nll, *kl = self._engine(**part.inputs, divisor=divisor / self.world.size, soft_targets=soft_targets)
        self._engine.backward(loss)
        self._add_kl(distillation, kl)
        if not last:
            self._engine.step()  # not at a boundary: only tells DeepSpeed that a micro-batch is over
        return part.whole(nll)

    def step(self, learning_rate: float, accept: Callable[[float], bool] = math.isfinite) -> float:
        set_learning_rate(self._optimizer, learning_rate)
        self._norm, self._accept = float("inf"), accept  # inf: DeepSpeed has found one before it asks
        if self.stage == 0:
            for parameter in self._frozen:
                parameter.grad = None
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
            if not accept(self._norm):
                self._engine.zero_grad()
                return self._norm
        self._engine.step()
        return self._norm

    def _watch_norms(self) -> None:
        """Make DeepSpeed ask `self._accept` about the norm of its gradients before each step.

        A norm that it takes for infinite is its own way to skip a step and clear every buffer of gradients.
        """
        from deepspeed.runtime.utils import combine_grad_norm_groups

        name = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        measure = getattr(self._optimizer, name)

        def watched() -> Any:
            measured = measure()
            whole = combine_grad_norm_groups(measured) if self.stage == 3 else measured
            self._norm = float(whole)
            if self._accept(self._norm):
                return measured
            refused = torch.full_like(torch.as_tensor(whole), float("inf"))
            return [refused] if self.stage == 3 else refused

        setattr(self._optimizer, name, watched)

    @torch.no_grad()
    def nll(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        self._engine.eval()
        part = self._own_part_of(input_ids=input_ids, labels=labels, position_ids=position_ids, cu_seqlens=cu_seqlens)
        return part.whole(self._engine(**part.inputs, divisor=1.0)[1])

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        self._engine.eval()
        return self._engine(**self._document_inputs(input_ids), labels=None)

    @torch.no_grad()
    def logits_at(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        self._engine.eval()
        inputs = self._to_device(input_ids=input_ids, position_ids=position_ids, cu_seqlens=cu_seqlens, at=at)
        return self._engine(**inputs, labels=None)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return self._state.tensors()

    def state_loaded(self, tensors: dict[str, torch.Tensor], updates: UpdateHistory) -> None:
        self.updates = updates
        self._state.take(tensors)
        self._follow_updates()

    def _follow_updates(self) -> None:
        self._adamw.follow(self.updates, self._state.places())
        for freeze in self._freezes:
            freeze.remove()
        # DeepSpeed counts on a gradient of every parameter. One of zeros adds nothing to any norm.
        self._frozen = self._named_frozen()
        self._freezes = [parameter.register_hook(torch.zeros_like) for parameter in self._frozen]
