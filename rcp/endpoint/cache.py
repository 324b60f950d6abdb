"""Answers kept on disk by a hash of their request: what was paid for once is not paid for again."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


def fingerprint(request: Any) -> str:
    """A hash of everything in a request that decides its answer; `request` is fit for json."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Cache:
    """Results by the hash of their request; in `path`, a JSON object a line, or in memory alone.

    Each result is appended as it comes, so a process killed at any moment loses at most a line, which reading skips.
    """

    def __init__(self, path: Path | None = None):
        self._path, self._lock = path, threading.Lock()
        self._found: dict[str, Any] = {}
        self._torn = False  # whether the last line has no end
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.split("\n"):
                try:
                    entry = json.loads(line)
                    self._found[entry["request"]] = entry["result"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __setitem__(self, key: str, result: Any) -> None:
        with self._lock:
            self._found[key] = result
            if self._path is None:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._torn else "") + json.dumps({"request": key, "result": result}) + "\n")
            self._torn = False
