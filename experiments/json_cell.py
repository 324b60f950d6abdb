"""A finished number of an experiment, in a JSON file of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def cell(path: Path, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The finished cell at `path`, or else computes it and writes it, whole or not at all."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] == settings and isinstance(found["values"], dict) and found["values"]:
            return found["values"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, partial or not ours: computed anew
    start = time.perf_counter()
    values = compute()
    write_whole(path, {"settings": settings, "values": values})
    print(f"{path.parent.name} {path.stem}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return values


def write_whole(path: Path, value: Any) -> None:
    """Writes JSON to `path`, whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
