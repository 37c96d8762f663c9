"""DeepSpeed's master weights and Adam moments as named tensors, for every ZeRO stage.

Stage 0 has plain tensors; stages 1 and 2 keep fragments of parameters in flat fp32 partitions; stage 3 gives each rank
a slice of each flattened parameter, padded on the last rank. All of them leave as plain tensors or `FlatShard`s of the
same names, and come back the same way. What DeepSpeed's public setters miss on the way back (the low-precision copy,
whole "persistent" parameters, Adam's step count) is set here too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from cpt_dist.engine.base import MOMENTS
from cpt_dist.engine.distributed import World
from cpt_dist.engine.flat_shard import FlatShard
from cpt_dist.engine.piecewise_adamw import Place

NamedParameters = list[tuple[str, nn.Parameter]]


def _make_moments(optimizer: torch.optim.Optimizer, masters: list[torch.Tensor]) -> None:
    # AdamW makes its state in the first step; a checkpoint of step 0 and a load need it before.
    for master in masters:
        state = optimizer.state[master]
        if "step" not in state:
            state["step"] = torch.tensor(0.0, device=master.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(master)


class ZeroState(ABC):
    """Access to the master weights and moments of one ZeRO stage."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of `Engine.state_tensors`."""

    @abstractmethod
    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put a loaded result of `tensors` into DeepSpeed."""

    @abstractmethod
    def places(self) -> list[Place]:
        """Where the optimizer's tensors on this rank hold which parameter."""


class WholeState(ZeroState):
    """Stage 0: the parameters are the master weights."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        _make_moments(optimizer, [parameter for _, parameter in parameters])

    def tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters:
            found[f"model.{name}"] = parameter.detach()
            for moment in MOMENTS:
                found[f"optimizer.{moment}.{name}"] = self._optimizer.state[parameter][moment]
        return found

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Nothing is left to do: the tensors are the parameters and moments themselves."""

    def places(self) -> list[Place]:
        return [Place(name, parameter, 0, parameter.numel()) for name, parameter in self._parameters]


class FragmentState(ZeroState):
    """Stages 1 and 2: fragments of parameters in one flat fp32 partition a group.

    A parameter may have no fragment on this rank.
    """

    def __init__(self, wrapper: Any, parameters: NamedParameters) -> None:
        self._wrapper, self._parameters = wrapper, parameters
        masters = wrapper.single_partition_of_fp32_groups
        _make_moments(wrapper.optimizer, masters)
        self._master_of = {master.untyped_storage().data_ptr(): master for master in masters}

    def tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters:
            fragment = parameter._hp_mapping  # type: ignore[attr-defined]
            if fragment is None:
                continue
            shape, start = tuple(parameter.shape), fragment.lp_fragment_address.start
            found[f"model.{name}"] = FlatShard(fragment.hp_fragment, shape, start)
            master = self._master_of[fragment.hp_fragment.untyped_storage().data_ptr()]
            where = fragment.hp_fragment_address
            for moment in MOMENTS:
                local = self._wrapper.optimizer.state[master][moment].narrow(0, where.start, where.numel)
                found[f"optimizer.{moment}.{name}"] = FlatShard(local, shape, start)
        return found

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        # The fragments are views of the partitions and hold the new values already.
        self._wrapper.update_lp_params()

    def places(self) -> list[Place]:
        fragments = [(name, parameter._hp_mapping) for name, parameter in self._parameters]  # type: ignore[attr-defined]
        return [
            Place(name, self._master_of[one.hp_fragment.untyped_storage().data_ptr()], where.start, where.numel)
            for name, one in fragments
            if one is not None
            for where in [one.hp_fragment_address]
        ]


class SliceState(ZeroState):
    """Stage 3: rank r owns elements [r * n, (r + 1) * n) of each flattened parameter, padded at the end."""

    def __init__(self, wrapper: Any, parameters: NamedParameters, world: World) -> None:
        self._wrapper, self._parameters, self._world = wrapper, parameters, world
        _make_moments(wrapper.optimizer, wrapper.fp32_partitioned_groups_flat)

    def tensors(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters:
            found[f"model.{name}"] = self._shard(parameter, safe_get_local_fp32_param(parameter))
            for moment in MOMENTS:
                local = safe_get_local_optimizer_state(parameter, moment)
                found[f"optimizer.{moment}.{name}"] = self._shard(parameter, local)
        return found

    def _shard(self, parameter: Any, local: torch.Tensor) -> FlatShard:
        start = min(self._world.rank * local.numel(), parameter.ds_numel)
        valid = min(local.numel(), parameter.ds_numel - start)
        return FlatShard(local.view(-1)[:valid], tuple(parameter.ds_shape), start)

    def places(self) -> list[Place]:
        found = []
        for name, parameter in self._parameters:
            group, start, size = self._wrapper.grad_position[self._wrapper.get_param_id(parameter)]
            found.append(Place(name, self._wrapper.fp32_partitioned_groups_flat[group], start, size))
        return found

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        for name, parameter in self._parameters:
            master = self._padded(parameter, tensors[f"model.{name}"])
            safe_set_local_fp32_param(parameter, master)
            parameter.ds_tensor.data.copy_(master)  # type: ignore[attr-defined]
            for moment in MOMENTS:
                moments = self._padded(parameter, tensors[f"optimizer.{moment}.{name}"])
                safe_set_local_optimizer_state(parameter, moments, moment)
        persistent = self._wrapper.persistent_parameters
        if persistent:
            # They are kept whole on each rank, and the forward pass would read the old copies.
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    @staticmethod
    def _padded(parameter: Any, shard: torch.Tensor) -> torch.Tensor:
        assert isinstance(shard, FlatShard)
        return nn.functional.pad(shard.local, (0, parameter.ds_tensor.numel() - shard.local.numel()))


def zero_state(wrapper: Any, parameters: NamedParameters, stage: int, world: World) -> ZeroState:
    """The access that fits what `deepspeed.initialize` returned as its optimizer at this stage."""
    if stage == 3:
        return SliceState(wrapper, parameters, world)
    return FragmentState(wrapper, parameters) if stage in (1, 2) else WholeState(wrapper, parameters)
