"""Plain values -> dataclasses, each key and type checked, with errors that say where the value was written."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

from rcp.config import ObjectiveConfig, TaskConfig
from rcp.config_check import nearest
from rcp.types import UserError

T = TypeVar("T")


def fill(cls: type[T], values: Mapping[str, Any], path: str, where: Callable[[str], str] = lambda key: "") -> T:
    """A dataclass filled from plain values and checked for names and types; tasks use it for their own section.

    Args:
      cls: the dataclass. Field types: int, float, bool, str, tuple, dict, Mapping, Literal, dataclass, or None too.
      values: its keys; missing ones take the defaults.
      path: dotted name of the section, for messages ("config.task").
      where: given a dotted key, says where it was written (" in configs/facts.py").

    Raises:
      UserError: unknown key (the nearest is named), missing key without default, or wrong type.
    """
    known = {f.name: f for f in fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    if cls is TaskConfig:
        free = {key: plain(value) for key, value in values.items() if key != "name"}
        values = {"name": values.get("name", TaskConfig.name), "fields": free}
    built = {}
    for key, value in values.items():
        name = f"{path}.{key}"
        if key not in known:
            raise UserError(f"unknown config key {name}{where(name)}{nearest(key, known, path)}")
        built[key] = _coerce(value, hints[key], name, where)
    for key, entry in known.items():
        if key not in built and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"config key {path}.{key} is missing and has no default{where(path)}")
    return cls(**built)


def plain(value: Any) -> Any:
    """ConfigDicts, FieldReferences and tuples as dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def _coerce(value: Any, hint: Any, name: str, where: Callable[[str], str]) -> Any:
    """`value` as the type `hint`: exact but for int -> float, list -> tuple, and for a tuple also one value alone or
    texts in one with commas between them, as a flag gives them ("ours,bm25")."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = UserError(f"config key {name}{where(name)} should be {_spell(hint)}, not {value!r}")
    if hint is Any:
        return plain(value)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), name, where)
    if origin is Literal:
        if value not in args:
            near = nearest(value, args) if isinstance(value, str) else ""
            raise UserError(f"config key {name}{where(name)} should be one of {', '.join(args)}, not {value!r}{near}")
        return value
    if origin is tuple:
        if isinstance(value, str) and args[0] is str:
            value = [item.strip() for item in value.split(",") if item.strip()] or [value]
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(item, args[0], name, where) for item in items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise wrong
        return {str(k): _coerce(v, args[1], f"{name}.{k}", where) for k, v in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint is ObjectiveConfig and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = {"weight": value}
        if not isinstance(value, Mapping):
            raise wrong
        return fill(hint, value, name, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, typing.cast(type, hint)) or (isinstance(value, bool) and hint is not bool):
        raise wrong
    return value


def _spell(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {_spell(args[0])} values"
    if hint is ObjectiveConfig:
        return "a weight or a section with weight, schedule, begin, end, steps"
    if origin in (dict, Mapping) or is_dataclass(hint):
        return "a section"
    return getattr(hint, "__name__", str(hint))
