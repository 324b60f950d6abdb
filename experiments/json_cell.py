"""A finished number of an experiment, in a JSON file of its own."""

from __future__ import annotations

import json
import os
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps({"settings": settings, "values": values}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial_path, path)
    print(f"{path.parent.name} {path.stem}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return values
