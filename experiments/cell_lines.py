"""What an experiment has measured: a file of JSON lines, each with the identity of its setting."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcp.types import UserError

Cell = dict[str, Any]
REMOVE = "remove this line to have it measured anew, or choose another --output"


class CellLines:
    """The cells in `path`, which gets every new one at once, so that an experiment goes on where it was stopped.

    Raises:
      UserError: a line that is not a cell, other than a last one that is not whole.
    """

    def __init__(self, path: Path):
        self._path = path
        self.cells: list[Cell] = []
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            self.cells = [_cell(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
            if len(whole) < len(data):  # it was stopped while it wrote
                print(f"{path}: its last line is not whole and is measured anew", file=sys.stderr)
                os.truncate(path, len(whole))

    def __contains__(self, identity: object) -> bool:
        return any(cell["identity"] == identity for cell in self.cells)

    def add(self, identity: dict[str, Any], found: Cell) -> None:
        self.cells.append({"identity": identity, **found})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.cells[-1]) + "\n")


def _cell(path: Path, number: int, line: bytes) -> Cell:
    try:
        found = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}, line {number}: not JSON; {REMOVE}") from error
    if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
        raise UserError(f"{path}, line {number}: no cell with an identity; {REMOVE}")
    return found


def newest(cells: Sequence[Cell], *ignored: str) -> list[Cell]:
    """Of cells whose identities differ in the keys `ignored` alone, the one that was measured last."""
    found: dict[str, Cell] = {}
    for cell in cells:
        key = json.dumps({k: v for k, v in cell["identity"].items() if k not in ignored}, sort_keys=True)
        found.pop(key, None)
        found[key] = cell
    return list(found.values())
