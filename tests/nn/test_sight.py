"""States of pieces that are kept: the same as computed in one go, and no piece twice."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rcp.nn import sight
from rcp.nn.pieces import mean_states, piece_states
from rcp.nn.sight import PieceStates
from rcp.types import Batch
from tests.tiny import Prompt, batch_of, tiny_model

ROWS = (Prompt((2, 70, 1)), Prompt((1, 3, 2, 3), question=3), Prompt((2,) * 5))
BATCH = batch_of(ROWS, 90, 5)
MODEL = tiny_model()
ENCODE = jax.jit(lambda tokens, lengths: mean_states(MODEL, tokens, lengths, 1))


class Counted:
    """Counts the pieces that are read."""

    def __init__(self):
        self.pieces = 0

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray):
        assert tokens.shape[0] == sight.ROWS
        self.pieces += int((lengths > 0).sum())
        return ENCODE(tokens, lengths)


def part(batch: Batch, *rows: int) -> Batch:
    return jax.tree.map(lambda x: x[list(rows)], batch)


def test_as_computed_in_one_go_and_no_piece_twice():
    encode = Counted()
    look = PieceStates(encode)
    expected = np.asarray(jax.jit(lambda batch: piece_states(MODEL, batch, 1))(BATCH))
    np.testing.assert_allclose(look(BATCH), expected, rtol=1e-4, atol=1e-5)
    pieces = sum(len(prompt.segments) + 1 for prompt in ROWS)
    first = encode.pieces
    assert first <= pieces
    again = look(part(BATCH, 2, 0, 1))
    assert encode.pieces == first
    np.testing.assert_array_equal(again, look(BATCH)[[2, 0, 1]])
    look.forget()
    np.testing.assert_array_equal(look(part(BATCH, 2)), again[:1])  # whatever was read beside it
    assert encode.pieces > first


def test_a_blind_one_reads_no_question():
    encode = Counted()
    found = PieceStates(encode, blind=True)(part(BATCH, 1))
    assert not found[:, -1].any() and found[0, :4].any(axis=1).all() and encode.pieces <= 4


def test_when_there_are_too_many_all_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    encode = Counted()
    look = PieceStates(encode)
    monkeypatch.setattr(sight, "MOST", 8)
    expected = look(part(BATCH, 1))
    look(part(BATCH, 2))
    before = encode.pieces
    np.testing.assert_array_equal(look(part(BATCH, 1)), expected)
    assert encode.pieces > before


def test_an_empty_prompt_has_nothing():
    empty = part(BATCH, 0)._replace(role=np.zeros_like(BATCH.role[:1]), segment=np.full_like(BATCH.segment[:1], -1))
    assert PieceStates(ENCODE)(empty).shape == (1, 6, 0)
