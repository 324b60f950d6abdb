"""What a trained scorer sees of prompts; states of pieces that come again are computed once.

A scorer that reads every piece by itself (`rcp.nn.pieces`) has the same view of a worked example in every prompt. So
its states are kept by their tokens, and only those of new pieces are computed: `ROWS` at a time, each at the static
length of its own tokens, so that no state depends on what was computed beside it or before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rcp.nn.lengths import padded
from rcp.types import Batch, Role

ROWS = 16
"""Pieces read at a time."""
MOST = 1 << 16
"""Pieces whose states are kept; when there are more, all are forgotten."""

Encode = Callable[[Int[np.ndarray, "pieces tokens"], Int[np.ndarray, " pieces"]], Any]
"""From texts, padded at the right end, and their lengths to states [pieces, dim]; compiled for every static length."""


class PieceStates:
    """States of the pieces of prompts, as `rcp.nn.pieces.piece_states` gives them. `blind`: the question's are 0."""

    def __init__(self, encode: Encode, *, blind: bool = False):
        self._encode, self._blind = encode, blind
        self._kept: dict[bytes, Float[np.ndarray, " dim"]] = {}

    def forget(self) -> None:
        """Drops the states of all pieces."""
        self._kept.clear()

    def __call__(self, batch: Batch) -> Float[np.ndarray, "batch pieces dim"]:
        """Of every segment and, last, of the question; 0 where there is no such piece."""
        places = {place: piece for place, piece in _pieces(batch) if not (self._blind and place[1] == -1)}
        if len(self._kept) + len(places) > MOST:
            self.forget()
        self._learn([piece for piece in places.values() if piece.tobytes() not in self._kept])
        width = len(next(iter(self._kept.values()), ()))
        states = np.zeros((batch.tokens.shape[0], batch.support.shape[1] + 1, width), np.float32)
        for place, piece in places.items():
            states[place] = self._kept[piece.tobytes()]
        return states

    def _learn(self, pieces: Sequence[Int[np.ndarray, " tokens"]]) -> None:
        by_length: dict[int, dict[bytes, np.ndarray]] = defaultdict(dict)
        for piece in pieces:
            by_length[padded(len(piece))][piece.tobytes()] = piece
        for length, alike in sorted(by_length.items()):
            names = list(alike)
            for first in range(0, len(names), ROWS):
                some = names[first : first + ROWS]
                tokens, lengths = np.zeros((ROWS, length), np.int32), np.zeros(ROWS, np.int32)
                for row, name in enumerate(some):
                    tokens[row, : len(alike[name])], lengths[row] = alike[name], len(alike[name])
                self._kept |= zip(some, np.asarray(self._encode(tokens, lengths), np.float32))


def _pieces(batch: Batch) -> Iterator[tuple[tuple[int, int], Int[np.ndarray, " tokens"]]]:
    """((row, segment or -1 for the question), tokens) of every piece of the prompts."""
    role, segment, tokens = (np.asarray(x) for x in (batch.role, batch.segment, batch.tokens))
    for row in range(len(role)):
        for number in np.unique(segment[row][role[row] == Role.CONTEXT]):
            yield (row, int(number)), tokens[row][segment[row] == number]
        if (asked := role[row] == Role.QUESTION).any():
            yield (row, -1), tokens[row][asked]
