"""PyTorch's AdamW, where a tensor of the optimizer may hold several parameters with lives of their own.

ZeRO 1 to 3 lay parameters end to end in flat tensors, and give the optimizer those. When some of the parameters in one
are frozen, or were updated less often than others, the flat tensor is stepped piece by piece; a frozen piece is left
out, so neither weight, moment nor decay touches it. Where all are alike PyTorch's own step is taken, unchanged, or
that of `cpt_kernels`, which clips the gradients in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cpt_kernels import adamw as kernel_step
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as adamw_step

from cpt_dist.engine.updates import UpdateHistory

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Place:
    """Elements `start` to `start + size` of the flattened tensor `master` of an optimizer: those of a parameter."""

    name: str
    master: torch.Tensor
    start: int
    size: int


@dataclass(frozen=True)
class _Piece:
    start: int
    size: int
    steps: torch.Tensor


class PiecewiseAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) that follows an `UpdateHistory`."""

    kernel: str | None = None
    """Backend of `cpt_kernels.adamw` that takes the steps; None for PyTorch's own."""
    factor: torch.Tensor | None = None
    """With a kernel: fp32 [1] that it multiplies every gradient of the next step by."""

    def follow(self, updates: UpdateHistory, places: Sequence[Place]) -> None:
        """Take step counts and frozen parameters from `updates`; `places` are all parameters in this rank's tensors.

        The state of each tensor must be there.
        """
        self._pieces: dict[torch.Tensor, list[_Piece]] = {}
        by_master: dict[torch.Tensor, list[Place]] = {}
        for place in places:
            by_master.setdefault(place.master, []).append(place)
        for master, inside in by_master.items():
            counts = {updates.steps_of(place.name) for place in inside}
            trained = [place for place in inside if updates.trains(place.name)]
            steps = self.state[master]["step"]
            if len(counts) == 1:
                steps.fill_(float(counts.pop()))
                if len(trained) == len(inside):
                    continue
            self._pieces[master] = [
                _Piece(place.start, place.size, torch.full_like(steps, float(updates.steps_of(place.name))))
                for place in trained
            ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every tensor that has a gradient."""
        pieces = getattr(self, "_pieces", {})
        apart = [
            (group, master, master.grad)
            for group in self.param_groups
            for master in group["params"]
            if master in pieces and master.grad is not None
        ]
        for _, master, _ in apart:
            master.grad = None
        result = super().step(closure) if self.kernel is None else self._step_by_kernel(self.kernel)
        for group, master, gradient in apart:
            master.grad = gradient
            if self.factor is not None:
                gradient.mul_(self.factor[0])
            self._step_pieces(group, master, gradient, pieces[master])
        return result

    def _step_by_kernel(self, backend: str) -> Any:
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            if not masters:
                continue
            steps = [self.state[master]["step"] for master in masters]
            torch._foreach_add_(steps, 1)
            # One wait for the device, not one a parameter.
            counts = torch.stack(steps).tolist()
            for master, count in zip(masters, counts, strict=True):
                state = self.state[master]
                kernel_step(
                    *([_local(tensor)] for tensor in (master.detach(), master.grad, *(state[m] for m in MOMENTS))),
                    step=int(count),
                    learning_rate=group["lr"],
                    betas=group["betas"],
                    epsilon=group["eps"],
                    weight_decay=group["weight_decay"],
                    factor=self.factor,
                    backend=backend,
                )

    def _step_pieces(
        self, group: dict[str, Any], master: torch.Tensor, gradient: torch.Tensor, pieces: list[_Piece]
    ) -> None:
        if not pieces:
            return
        state = self.state[master]
        values, gradients, means, squares = (
            [tensor.view(-1).narrow(0, piece.start, piece.size) for piece in pieces]
            for tensor in (master.detach(), gradient, *(state[moment] for moment in MOMENTS))
        )
        beta1, beta2 = group["betas"]
        adamw_step(
            values,
            gradients,
            means,
            squares,
            [],
            [piece.steps for piece in pieces],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
