"""The inputs of checkpointed layers in host memory between the forward and the backward pass.

With activation checkpointing one tensor [tokens, hidden] a layer is what stays on the device; this moves it to pinned
host memory on a stream of its own, and back one layer ahead of the backward pass. transformers has the same as an
option (`activation_checkpointing_enable(offload=True)`), but in 5.23 that asks for pinned memory where there is none
and copies in the stream that computes. The GPU path follows PyTorch's documentation and has not been measured on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Kept:
    """One saved tensor: its copy on the host, and on the device once it is being fetched."""

    def __init__(self, device: torch.device, host: Tensor, before: weakref.ref[_Kept] | None) -> None:
        self.device, self.host, self._before = device, host, before
        self.fetched: tuple[Tensor, torch.cuda.Event] | None = None

    @property
    def before(self) -> _Kept | None:
        """The tensor that was saved before this one, and is wanted after it; None where it has gone."""
        return None if self._before is None else self._before()


class HostOffload:
    """Keeps the arguments of checkpointed functions on the host; one for all layers of a model."""

    def __init__(self) -> None:
        self._last: weakref.ref[_Kept] | None = None
        self._leaving: tuple[Tensor, torch.cuda.Event] | None = None
        self._stream: torch.cuda.Stream | None = None

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """`checkpoint(function, *arguments)`, which saves nothing but its arguments, with these kept on the host."""

        def offloaded(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, self._give_back):
                return checkpoint(function, *arguments, **keywords)

        return offloaded

    def _keep(self, tensor: Tensor) -> _Kept:
        on_gpu = tensor.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=on_gpu)
        if on_gpu:
            self._let_go()
            stream = self._side_stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(tensor.detach(), non_blocking=True)
            # The tensor's memory must not be used again before it is copied: it is held until the next layer's copy.
            self._leaving = tensor.detach(), stream.record_event()
        else:
            host.copy_(tensor.detach())
        kept = _Kept(tensor.device, host, self._last)
        self._last = weakref.ref(kept)
        return kept

    def _give_back(self, kept: _Kept) -> Tensor:
        if kept.device.type != "cuda":
            return kept.host
        self._let_go()
        tensor, arrived = kept.fetched or self._fetch(kept)
        before = kept.before
        if before is not None and before.fetched is None:
            before.fetched = self._fetch(before)
        # `tensor` is memory of the computing stream, which waits here: no other use of it can come too early.
        torch.cuda.current_stream(kept.device).wait_event(arrived)
        return tensor

    def _fetch(self, kept: _Kept) -> tuple[Tensor, torch.cuda.Event]:
        tensor = torch.empty_like(kept.host, device=kept.device)
        stream = self._side_stream(kept.device)
        stream.wait_stream(torch.cuda.current_stream(kept.device))
        with torch.cuda.stream(stream):
            tensor.copy_(kept.host, non_blocking=True)
        return tensor, stream.record_event()

    def _let_go(self) -> None:
        if self._leaving is not None:
            tensor, copied = self._leaving
            torch.cuda.current_stream(tensor.device).wait_event(copied)
            self._leaving = None

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream
