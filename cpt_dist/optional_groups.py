"""Overrides that reach into what isn't there yet: stages.0.curriculum={name: gradual, …}, stages.0.mixture.web=0.3.

Hydra merges an override into the node that is there. Where that is null it fails with an AttributeError or an
AssertionError, and where it is a mapping with free keys it takes a new one behind a + only. So null groups are made,
with their defaults, and such mappings opened before Hydra applies the overrides; there is no hook for it, hence the
wrapper around a method of Hydra 1.3.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf


def make_optional_groups(overrides: list[Override], composition: DictConfig, schema: type) -> None:
    """Put the defaults of `schema` where `composition` has null and one of `overrides` sets a key below, or a mapping;
    and let those of its mappings that an override reaches take new keys.

    What is no key of `schema` is left to Hydra, which names it.
    """
    for override in overrides:
        if not override.is_delete():
            _make(composition, override.key_or_group.split("."), override.value(), schema)


def _make(node: Any, parts: list[str], value: Any, schema: Any) -> None:
    if typing.get_origin(schema) is dict and isinstance(node, DictConfig):
        OmegaConf.set_struct(node, False)
    if not parts:
        if dataclasses.is_dataclass(schema) and isinstance(value, dict):
            for name, inside in value.items():
                _make(node, [str(name)], inside, schema)
        return
    is_list = isinstance(node, ListConfig)
    key: Any = int(parts[0]) if is_list and parts[0].isdigit() else parts[0]
    inner = _schema_of(schema, parts[0])
    reaches_in = dataclasses.is_dataclass(inner) and (len(parts) > 1 or isinstance(value, dict))
    if isinstance(node, DictConfig) and key not in node and reaches_in and typing.get_origin(schema) is dict:
        node[key] = OmegaConf.structured(inner)
    present = key < len(node) if is_list and isinstance(key, int) else isinstance(node, DictConfig) and key in node
    if inner is None or not present or OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
        return
    if node[key] is None and reaches_in:
        node[key] = OmegaConf.structured(inner)
    _make(node[key], parts[1:], value, inner)


def _schema_of(schema: Any, part: str) -> Any:
    """The type of `part` in a group of type `schema`, without Optional; None where there is none."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin in (dict, list):
        inner = arguments[-1]
    elif dataclasses.is_dataclass(schema):
        inner = typing.get_type_hints(schema).get(part)
    else:
        return None
    choices = typing.get_args(inner)
    return next(one for one in choices if one is not type(None)) if type(None) in choices else inner


def reach_into_optional_groups(schema: type) -> None:
    """Let overrides of this process's compositions reach into null groups of `schema`."""
    apply = ConfigLoaderImpl._apply_overrides_to_config
    if hasattr(apply, "__wrapped__"):
        return

    @wraps(apply)
    def wrapped(overrides: list[Override], cfg: DictConfig) -> None:
        make_optional_groups(overrides, cfg, schema)
        apply(overrides, cfg)

    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(wrapped)  # type: ignore[method-assign]
