"""What an experiment has measured: a file of JSON lines, each with the identity of its setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


class CellLines:
    """The cells in `path`, which gets every new one at once, so that an experiment goes on where it was stopped."""

    def __init__(self, path: Path):
        self._path = path
        self.cells: list[Cell] = []
        if path.exists():
            self.cells = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def __contains__(self, identity: object) -> bool:
        return any(cell["identity"] == identity for cell in self.cells)

    def add(self, identity: dict[str, Any], found: Cell) -> None:
        self.cells.append({"identity": identity, **found})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.cells[-1]) + "\n")
