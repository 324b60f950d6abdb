"""Reads a run's configuration: python file or saved json, flags over it, each key checked.

A file `configs/X.py` is plain python with `get_config(variant: str = "")`, which returns an `ml_collections.ConfigDict`
(or a dict) holding only what differs from the defaults of `rcp.config`. `configs/X.py:rl` passes the variant "rl",
which must be one of the file's `VARIANTS` where it has such a tuple.
Flags are `--config.section.key=value`. Nothing but this file ever sees a ConfigDict.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rcp.config import Config, TaskConfig
from rcp.config_check import check
from rcp.config_fill import fill, plain
from rcp.types import UserError


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `path` ("configs/X.py" or "configs/X.py:variant") with flags laid over it.

    Args:
      path: python file with `get_config`, or a `config.json` that a run has saved; None for the defaults alone.
      overrides: flags of the form "--config.a.b=value" (or "a.b=value"), later ones win. Where "task.name" names
        another task than the file does, the file's other keys of the task section are dropped.

    Paths (`task.path`, `task.*_path`, `eviction.folder`, `eval.runs`, a file or folder as `model.name`) are relative to
    the folder that the command runs in and come back absolute, so that a saved config means the same files everywhere.

    Raises:
      UserError: no such file, an unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    text, variant = str(path), ""
    if ":" in text and not Path(text).exists():
        text, variant = text.rsplit(":", 1)
    values = {} if path is None else _read(Path(text), variant)
    flags = [(*_parse_flag(flag), flag) for flag in overrides]
    named = [value for key, value, _ in flags if key == "task.name"]
    if named and isinstance(values.get("task"), dict) and named[-1] != values["task"].get("name", TaskConfig.name):
        values["task"] = {}  # the file's keys are those of another task
    origin = dict.fromkeys(_flat_keys(values), f"in {text}")
    for key, value, flag in flags:
        _set(values, key, value, flag)
        origin[key] = f"in the flag --config.{key}"
    _make_absolute(values)
    return from_dict(values, origin=origin, default_origin="" if path is None else f"in {text}")


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
        known = namespace.get("VARIANTS", ())
        if variant and known and variant not in known:
            raise ValueError(f"unknown variant {variant!r}; expected one of {', '.join(known)}")
        values = namespace["get_config"](variant) if variant else namespace["get_config"]()
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: get_config({variant!r}) failed with {type(error).__name__}: {error}") from error
    return plain(values)


def _parse_flag(flag: str) -> tuple[str, Any]:
    match = re.fullmatch(r"(?:--)?(?:config\.)?([\w.]+)=(.*)", flag, flags=re.DOTALL)
    if not match:
        raise UserError(f"cannot read the flag {flag!r}; expected --config.section.key=value")
    key, text = match.groups()
    spelled = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in spelled:
        return key, spelled[text.lower()]
    try:
        return key, plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return key, text


def _set(values: dict[str, Any], key: str, value: Any, flag: str) -> None:
    *parents, last = key.split(".")
    section: dict[str, Any] = values
    for parent in parents:
        inner: Any = section.setdefault(parent, {})
        if isinstance(inner, (int, float)) and "objectives" in parents:
            inner = section[parent] = {"weight": inner}
        if not isinstance(inner, dict):
            raise UserError(f"the flag {flag!r} sets a key inside {parent}, which is a value, not a section")
        section = inner
    section[last] = value


def _make_absolute(values: dict[str, Any]) -> None:
    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    def section(parent: Any, name: str) -> dict[str, Any]:
        found = parent.get(name)
        return found if isinstance(found, dict) else {}

    eviction = section(values, "eviction")
    folder = eviction.get("folder")
    if isinstance(folder, str) and folder:
        eviction["folder"] = absolute(folder)
    traced = section(eviction, "tasks")
    own = [section(traced, name) for name in traced]
    for task in (section(values, "task"), section(section(values, "reader"), "task"), *own):
        for key, value in task.items():
            if (key == "path" or key.endswith("_path")) and isinstance(value, str) and value:
                task[key] = absolute(value)
    runs = section(section(values, "eval"), "runs")
    runs.update({name: absolute(folder) for name, folder in runs.items() if isinstance(folder, str)})
    model = section(values, "model")
    name = model.get("name")
    if isinstance(name, str) and ("/" in name or name.endswith(".gguf")) and Path(name).expanduser().exists():
        model["name"] = absolute(name)


def _flat_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys += _flat_keys(value, name + ".") if isinstance(value, Mapping) else [name]
    return keys


MAY_CHANGE = (
    *("train.log_every", "train.checkpoint_every", "train.keep", "eval.", "parallel.", "model.remat"),
    *(f"reward.endpoint.{key}" for key in ("base_url", "api_key_env", "concurrency", "timeout", "retries")),
)
"""Keys that a resumed run may change, besides a larger `train.steps`: none changes a number beyond rounding."""


def deciding_keys(config: Config) -> dict[str, Any]:
    """Dotted keys and values of what decides the numbers of a run, which `MAY_CHANGE` and `train.steps` do not."""
    values = to_dict(config)
    flat = {key: _lookup(values, key) for key in _flat_keys(values)}
    return {k: v for k, v in flat.items() if k != "train.steps" and not k.startswith(MAY_CHANGE)}


def _lookup(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def differing_keys(before: Config, after: Config) -> list[str]:
    """The dotted keys that decide the numbers of a run and differ, one of which may be absent in either."""
    old, new = deciding_keys(before), deciding_keys(after)
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
