"""What each method found, batch by batch, one file a method: an evaluation that was stopped goes on where it was.

A `Cell` belongs to an *identity*: everything that decides the method's numbers besides prompts and budget. Prompts and
budget name the pieces inside: a batch by a digest of its arrays, a budget by `Budget.key`. So other examples, more of
them, or one more budget leave the finished pieces good. Before a cell of another identity is written in its place, the
old file is set aside under a name of its own, and found again when its identity is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rcp.evaluate.results import UNSWEPT, Results, Sent, Shown
from rcp.types import Batch

FORMAT = 1
ROWS = ("index", "group", "context", "answer_tokens", "kept", "nll_sum", "em")
OPTIONAL = ("asked", "bytes", "unmended", "sent")
SECONDS = ("prune_seconds", "model_seconds")


@dataclass(frozen=True)
class Piece:
    """One batch at one budget, without its rows of weight 0. Arrays as in `Results`, for these n examples.

    `nll_sum`: over the answer's tokens, as the reader gave it. `keep`: the mask bool [n, tokens], or None where it is
    not shown. The seconds are those of the whole batch. Of pruned caches `context` and `kept` count entries, `asked` is
    how many were asked for and `bytes` what the arrays take that hold what was kept; of prompts that went out as text
    `asked`, `unmended` and `sent` are those of `rcp.evaluate.results.Sent`; else these are None.
    """

    index: np.ndarray
    group: np.ndarray
    context: np.ndarray
    answer_tokens: np.ndarray
    kept: np.ndarray
    nll_sum: np.ndarray
    em: np.ndarray
    keep: np.ndarray | None
    prune_seconds: float
    model_seconds: float
    asked: np.ndarray | None = None
    bytes: np.ndarray | None = None
    unmended: np.ndarray | None = None
    sent: np.ndarray | None = None

    @property
    def nll(self) -> np.ndarray:
        """Mean over the answer's tokens, float64 [n]."""
        return self.nll_sum.astype(np.float64) / self.answer_tokens

    def take(self, rows: Sequence[int]) -> Piece:
        """Some of its rows, without their masks, and the same share of its seconds."""
        share = len(rows) / len(self.index)
        values = {name: getattr(self, name) for name in (*ROWS, *OPTIONAL)}
        arrays = {name: None if value is None else value[list(rows)] for name, value in values.items()}
        return Piece(**arrays, **{name: share * getattr(self, name) for name in SECONDS}, keep=None)


def digest(batch: Batch) -> str:
    """Changes when any array of the batch does (16 hex digits)."""
    found = hashlib.sha256()
    for array in map(np.asarray, batch):
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


@dataclass
class Cell:
    """The pieces of one method by (budget, batch); in `path`, or in memory alone.

    Attributes:
      identity: fit for json.
      devices: what the pieces were measured on.
      stale: why what the file held before was not taken, or "".
      aside: the name that this file gets before the cell is written, where it is of another identity or unreadable.
    """

    identity: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    pieces: dict[tuple[str, str], Piece] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    stale: str = ""
    aside: Path | None = None

    def holds(self, budget: str, batch: str, *, shown: bool = False) -> bool:
        """Whether that piece is there, with its mask if it is to be shown."""
        piece = self.pieces.get((budget, batch))
        return piece is not None and not (shown and piece.keep is None)

    def column(self, budget: str, batches: Sequence[str]) -> list[Piece] | None:
        """The pieces of these batches at one budget, or None where some are missing."""
        found = [self.pieces[budget, batch] for batch in batches if (budget, batch) in self.pieces]
        return found if len(found) == len(batches) else None

    def note(self, done: int, batches: int) -> str:
        """What the file brings of so many batches, for the terminal; "" where there is nothing to say."""
        if self.stale:
            return f"{self.stale}; measured anew"
        return f"{done} of {batches} batches are in {self.path} (delete it to measure them again)" if done else ""

    def save(self, device: str = "") -> None:
        """Writes the file whole or not at all. `device`: where the newest pieces were measured."""
        if device and device not in self.devices:
            self.devices += (device,)
        if self.path is None or not self.pieces:
            return
        pieces, names = list(self.pieces.values()), list(self.pieces)
        masks = [piece.keep for piece in pieces if piece.keep is not None]
        arrays: dict[str, Any] = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in ROWS}
        for name in OPTIONAL:
            if all(getattr(piece, name) is not None for piece in pieces):
                arrays[name] = np.concatenate([getattr(piece, name) for piece in pieces])
        arrays |= {name: np.array([getattr(piece, name) for piece in pieces]) for name in SECONDS}
        arrays |= {
            "rows": np.array([len(piece.index) for piece in pieces], np.int32),
            "mask_tokens": np.array([0 if p.keep is None else p.keep.shape[1] for p in pieces], np.int32),
            "masks": np.packbits(np.concatenate([mask.ravel() for mask in masks] or [np.zeros(0, bool)])),
        }
        meta = {"format": FORMAT, "identity": self.identity, "devices": self.devices, "pieces": names}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)
            if self.aside is not None and self.path.exists():
                os.replace(self.path, self.aside)
            self.aside = None
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)


def open_cell(path: Path, identity: Mapping[str, Any]) -> Cell:
    """The cell in a file, or the one of this identity that was set aside for it; empty where there is neither."""
    identity = json.loads(json.dumps(identity))
    try:
        found = read_cell(path) if path.exists() else None
    except Exception as error:  # numpy, zipfile and json raise many kinds for a damaged file
        why = f"{path} cannot be read ({type(error).__name__})"
        return Cell(identity, path, stale=why, aside=path.with_name(f"{path.stem}.unreadable{path.suffix}"))
    if found is not None and found.identity == identity:
        return found
    aside = None if found is None else _aside(path, found.identity)
    try:
        earlier = read_cell(_aside(path, identity))
    except Exception:  # none there, or damaged
        earlier = None
    if earlier is not None and earlier.identity == identity:
        return replace(earlier, path=path, aside=aside)
    return Cell(identity, path, stale="" if found is None else _differs(path, found.identity, identity), aside=aside)


def _aside(path: Path, identity: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def _differs(path: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    key = next(key for key in sorted(found.keys() | identity.keys()) if found.get(key) != identity.get(key))
    return f"{path} is stale: {key} was {found.get(key)!r} and is {identity.get(key)!r}"


def read_cell(path: Path) -> Cell:
    """What `Cell.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    meta = json.loads(str(data["meta"]))
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}")
    ends = np.cumsum(data["rows"])
    areas = data["rows"] * data["mask_tokens"]
    bits, starts = np.unpackbits(data["masks"]).astype(bool), np.cumsum(areas) - areas
    cell = Cell(meta["identity"], path, devices=tuple(meta["devices"]))
    for number, name in enumerate(meta["pieces"]):
        rows = slice(ends[number] - data["rows"][number], ends[number])
        mask = bits[starts[number] : starts[number] + areas[number]] if data["mask_tokens"][number] else None
        values: dict[str, Any] = {key: data[key][rows] for key in (*ROWS, *OPTIONAL) if key in data}
        values |= {key: float(data[key][number]) for key in SECONDS}
        values["keep"] = None if mask is None else mask.reshape(-1, data["mask_tokens"][number])
        cell.pieces[tuple(name)] = Piece(**values)
    return cell


def gather(
    columns: Mapping[tuple[str, float], Sequence[Piece]],
    *,
    decoded: bool = False,
    how: str = "",
    compiles: int = 0,
    groups: Sequence[str] = ("",),
    shown: Sequence[Shown] = (),
    unswept: Sequence[str] = (),
) -> Results:
    """One `Results` of settings (method, keep rate) that were measured on the same batches, together or apart."""
    first = next(iter(columns.values()))
    n = sum(len(piece.index) for piece in first)
    for pieces in columns.values():
        assert [piece.index.tolist() for piece in pieces] == [piece.index.tolist() for piece in first]

    def rows(name: str, pieces: Sequence[Piece]) -> np.ndarray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    def seconds(name: str) -> np.ndarray:
        return np.array([sum(getattr(piece, name) for piece in pieces) for pieces in columns.values()]) / n

    arrays: dict[str, Any] = {name: rows(name, first) for name in ("index", "group", "context", "answer_tokens")}
    for name in ("kept", "nll", "em"):
        arrays[name] = np.stack([rows(name, pieces) for pieces in columns.values()])
    return Results(
        settings=tuple(columns),
        **arrays,
        prune_seconds=seconds("prune_seconds"),
        model_seconds=seconds("model_seconds"),
        decoded=decoded,
        how=how,
        compiles=compiles,
        groups=tuple(groups),
        shown=tuple(shown),
        unswept=(*UNSWEPT, *unswept),
        sent=tuple(_sent(pieces) for pieces in columns.values()),
    )


def _sent(pieces: Sequence[Piece]) -> Sent | None:
    """Of all rows; None where some went out as no text."""
    found = [[getattr(piece, name) for piece in pieces] for name in Sent._fields]
    return None if any(part is None for parts in found for part in parts) else Sent(*map(np.concatenate, found))
