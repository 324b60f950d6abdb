"""Reads a run's configuration: python file or saved json, flags over it, each key checked; and saves it beside the run.

A file `configs/X.py` is plain python with `get_config(variant: str = "")`, which returns an `ml_collections.ConfigDict`
(or a dict) holding only what differs from the defaults of `rcp.config`. `configs/X.py:rl` passes the variant "rl".
Flags are `--config.section.key=value`. Nothing but this file ever sees a ConfigDict.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from rcp.config import Config, ObjectiveConfig, TaskConfig, check, nearest
from rcp.types import UserError

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `path` ("configs/X.py" or "configs/X.py:variant") with flags laid over it.

    Args:
      path: python file with `get_config`, or a `config.json` that a run has saved.
      overrides: flags of the form "--config.a.b=value" (or "a.b=value"), later ones win. Where "task.name" names
        another task than the file does, the file's other keys of the task section are dropped.

    Raises:
      UserError: no such file, an unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    text, variant = str(path), ""
    if ":" in text and not Path(text).exists():
        text, variant = text.rsplit(":", 1)
    values = _read(Path(text), variant)
    flags = [(*_parse_flag(flag), flag) for flag in overrides]
    named = [value for key, value, _ in flags if key == "task.name"]
    if named and isinstance(values.get("task"), dict) and named[-1] != values["task"].get("name", TaskConfig.name):
        values["task"] = {}  # the file's keys are those of another task
    origin = dict.fromkeys(_flat_keys(values), f"in {text}")
    for key, value, flag in flags:
        _set(values, key, value, flag)
        origin[key] = f"in the flag --config.{key}"
    return from_dict(values, origin=origin, default_origin=f"in {text}")


def from_dict(
    values: Mapping[str, Any], *, origin: Mapping[str, str] | None = None, default_origin: str = ""
) -> Config:
    """A checked `Config` from nested plain values; `origin` says of a dotted key where it was written."""

    def where(key: str) -> str:
        """Of the key itself, of the nearest section around it, or of what stands inside it."""
        written = dict(origin or {})
        for name in (key, *reversed([key[:i] for i, sign in enumerate(key) if sign == "."])):
            if name in written:
                return " " + written[name]
        for name in written:
            if name.startswith(key + "."):
                return " " + written[name]
        return f" {default_origin}" if default_origin else ""

    config = fill(Config, values, "config", lambda key: where(key.removeprefix("config.")))
    check(config, where)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, the inverse of `from_dict`; fit for json."""
    values = asdict(config)
    values["task"] = {"name": config.task.name, **config.task.fields}
    return json.loads(json.dumps(values))


def fill(cls: type[T], values: Mapping[str, Any], path: str, where: Callable[[str], str] = lambda key: "") -> T:
    """A dataclass filled from plain values and checked for names and types; tasks use it for their own section.

    Args:
      cls: the dataclass. Field types: int, float, bool, str, tuple, dict, Literal, dataclasses, and those or None.
      values: its keys; missing ones take the defaults.
      path: dotted name of the section, for messages ("config.task").
      where: given a dotted key, says where it was written (" in configs/facts.py").

    Raises:
      UserError: unknown key (the nearest is named), missing key without default, or wrong type.
    """
    known = {f.name: f for f in fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    if cls is TaskConfig:
        free = {key: _plain(value) for key, value in values.items() if key != "name"}
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


def _plain(value: Any) -> Any:
    """ConfigDicts, FieldReferences and tuples as dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _coerce(value: Any, hint: Any, name: str, where: Callable[[str], str]) -> Any:
    """`value` as the type `hint`: exact but for int -> float, list -> tuple, and one value for a tuple of one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = UserError(f"config key {name}{where(name)} should be {_spell(hint)}, not {value!r}")
    if hint is Any:
        return _plain(value)
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
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(item, args[0], name, where) for item in items)
    if origin is dict:
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
    if origin is dict or is_dataclass(hint):
        return "a section"
    return getattr(hint, "__name__", str(hint))


def _read(path: Path, variant: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no config file {path}; expected a python file with get_config(), such as configs/smoke.py")
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    try:
        namespace = runpy.run_path(str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    if "get_config" not in namespace:
        raise UserError(f"{path} has no function get_config(variant='')")
    try:
        if variant and not inspect.signature(namespace["get_config"]).parameters:
            raise ValueError("it takes no variant")
        values = namespace["get_config"](variant) if variant else namespace["get_config"]()
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: get_config({variant!r}) failed with {type(error).__name__}: {error}") from error
    return _plain(values)


def _parse_flag(flag: str) -> tuple[str, Any]:
    match = re.fullmatch(r"(?:--)?(?:config\.)?([\w.]+)=(.*)", flag, flags=re.DOTALL)
    if not match:
        raise UserError(f"cannot read the flag {flag!r}; expected --config.section.key=value")
    key, text = match.groups()
    spelled = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in spelled:
        return key, spelled[text.lower()]
    try:
        return key, _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return key, text


def _set(values: dict[str, Any], key: str, value: Any, flag: str) -> None:
    *parents, last = key.split(".")
    section: dict[str, Any] = values
    for parent in parents:
        inner: Any = section.setdefault(parent, {})
        if isinstance(inner, (int, float)) and parents[0] == "objectives":
            inner = section[parent] = {"weight": inner}
        if not isinstance(inner, dict):
            raise UserError(f"the flag {flag!r} sets a key inside {parent}, which is a value, not a section")
        section = inner
    section[last] = value


def _flat_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys += _flat_keys(value, name + ".") if isinstance(value, Mapping) else [name]
    return keys


MAY_CHANGE = ("train.log_every", "train.checkpoint_every", "train.keep", "eval.")
"""Keys that a resumed run may change, besides a larger `train.steps`."""


def fingerprint(config: Config) -> str:
    """A short hash of everything that decides the numbers of a run, which `MAY_CHANGE` and `train.steps` do not."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:16]


def _identity(config: Config) -> dict[str, Any]:
    """What decides, as far as it differs from the defaults: a key added later changes no earlier run's identity."""
    usual = _decisive(Config())
    return {k: v for k, v in _decisive(config).items() if k not in usual or usual[k] != v}


def _decisive(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    flat = {key: _lookup(values, key) for key in _flat_keys(values)}
    return {k: v for k, v in flat.items() if k != "train.steps" and not k.startswith(MAY_CHANGE)}


def _lookup(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def differing_keys(before: Config, after: Config) -> list[str]:
    """The dotted keys that decide the numbers of a run and differ, one of which may be absent in either."""
    old, new = _decisive(before), _decisive(after)
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def save_config(config: Config, workdir: Path) -> None:
    """Writes `workdir/config.json`, or checks a resumed run's configuration against the one there.

    Raises:
      UserError: the folder holds a run of another configuration; the message names the keys that differ.
    """
    path = workdir / "config.json"
    if path.exists():
        before = load_config(path)
        old, new = _decisive(before), _decisive(config)
        differ = [
            f"  config.{k}: {old.get(k, '(not set)')!r} there, {new.get(k, '(not set)')!r} now"
            for k in differing_keys(before, config)
        ]
        if config.train.steps < before.train.steps:
            differ.append(f"  config.train.steps: {before.train.steps} there, {config.train.steps} now (may only grow)")
        if differ:
            raise UserError(
                f"{workdir} holds a run of another config; choose another --workdir or restore these keys:\n"
                + "\n".join(differ)
            )
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    partial.replace(path)
