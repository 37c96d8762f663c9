"""A model's logits from its files, with the weights of one module in memory at a time.

The architecture is built with parameters that have shapes and no values; each module reads its own just before it
runs and drops them after. So the check of a consolidated model needs no more memory than the consolidation. The way
is that of accelerate's `init_empty_weights` and of its offload to disk; this is for one small forward pass only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from cpt_dist.errors import UserError


def empty_model(folder: Path) -> Any:
    """The causal language model of a folder's config.json with parameters on the meta device.

    Buffers that no file holds, such as the frequencies of RoPE, have their values. No remote code is run.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with _parameters_on_meta(), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    return model.eval()


def stored_names(model: nn.Module) -> dict[str, set[str]]:
    """Name of each parameter and persistent buffer -> the names under which a file may hold it.

    Tied parameters, which are one, have the name that comes first and all of their names.
    """
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    in_state = set(model.state_dict())
    found = {names[0]: set(names) for names in groups.values()}
    return found | {name: {name} for name, _ in model.named_buffers() if name in in_state}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _Files:
    """The tensors of a folder's safetensors files by name."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self.path_of = {name: folder / file for name, file in weight_map.items()}
        else:
            path = folder / "model.safetensors"
            with safe_open(path, framework="pt") as file:
                self.path_of = dict.fromkeys(file.keys(), path)

    def read(self, name: str) -> torch.Tensor:
        with safe_open(self.path_of[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.float() if tensor.is_floating_point() else tensor


def _check_names(model: nn.Module, files: _Files) -> None:
    wanted = stored_names(model)
    known = set().union(*wanted.values()) if wanted else set()
    missing = sorted(name for name, aliases in wanted.items() if not aliases & set(files.path_of))
    wrong = {"missing_keys": missing, "unexpected_keys": sorted(set(files.path_of) - known)}
    if any(wrong.values()):
        raise UserError(f"the written model doesn't load whole: { ({k: v for k, v in wrong.items() if v}) }")


def _stream_weights(model: nn.Module, files: _Files) -> None:
    """Make each module read its own parameters before its forward pass and drop them after it."""
    stored = {alias: alias for alias in files.path_of}
    for aliases in stored_names(model).values():
        held = next(alias for alias in sorted(aliases) if alias in files.path_of)
        stored |= dict.fromkeys(aliases, held)

    def attach(module: nn.Module, prefix: str) -> None:
        empty = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
        for name, buffer in module._buffers.items():
            if prefix + name in stored and buffer is not None:
                module._buffers[name] = files.read(prefix + name)
        if not empty:
            return

        def read(*_: Any) -> None:
            for name, parameter in empty.items():
                values = files.read(stored[prefix + name])
                if values.shape != parameter.shape:
                    had, want = list(values.shape), list(parameter.shape)
                    raise UserError(f"the written model doesn't load whole: '{prefix + name}' is {had}, not {want}")
                module._parameters[name] = nn.Parameter(values, requires_grad=False)

        def drop(*_: Any) -> None:
            module._parameters.update(empty)

        module.register_forward_pre_hook(read)
        module.register_forward_hook(drop)

    for path, module in model.named_modules():
        attach(module, f"{path}." if path else "")


def logits(folder: Path, input_ids: torch.Tensor, model: Any = None) -> torch.Tensor:
    """The logits [tokens, vocab], in fp32, of the model in `folder` on one text [tokens].

    The model is the one that transformers builds for the folder (`model`: what `empty_model` gave for it, if that was
    called already); it runs in fp32 whatever the files hold. Raises UserError where weights are missing, unexpected or
    of another shape.
    """
    model, files = model or empty_model(folder), _Files(folder)
    _check_names(model, files)
    _stream_weights(model, files)
    with torch.no_grad():
        return model(input_ids=input_ids[None], use_cache=False).logits[0].float()
