"""States of pieces read each by itself: their parity with a loop, and what they must not depend on."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rcp.nn.layout import without
from rcp.nn.pieces import mean_states, piece_states
from rcp.types import Role
from tests.tiny import Prompt, batch_of, tiny_model, tiny_scorer

LENGTH, SEGMENTS = 24, 4
ROWS = (Prompt((2, 5, 1), instruction=2, answer=2), Prompt((1, 3, 2, 3), instruction=0, question=3))
MODEL = tiny_model()
STATES = jax.jit(lambda batch: piece_states(MODEL, batch, 1))


def test_each_piece_by_itself():
    """Against the model on that piece's tokens alone; nothing where there is no such segment."""
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    found = np.asarray(STATES(batch))
    for row, prompt in enumerate(ROWS):
        pieces = [batch.tokens[row][batch.segment[row] == s] for s in range(len(prompt.segments))]
        pieces.append(batch.tokens[row][batch.role[row] == Role.QUESTION])
        for place, piece in zip((*range(len(prompt.segments)), -1), pieces):
            states = np.asarray(MODEL.hidden(piece[None], stop=1))[0]
            unit = states / np.sqrt((states**2).mean(axis=1, keepdims=True) + 1e-6)
            np.testing.assert_allclose(found[row, place], unit.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert not found[0, 3].any()


def test_a_static_length_of_the_pieces_changes_nothing():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    bounded = jax.jit(lambda batch: piece_states(MODEL, batch, 1, 5))(batch)
    np.testing.assert_allclose(bounded, STATES(batch), rtol=1e-4, atol=1e-5)
    wide = batch_of(ROWS, 90, SEGMENTS)  # several static lengths to choose from
    np.testing.assert_allclose(STATES(wide), STATES(batch), rtol=1e-4, atol=1e-5)


def test_a_text_without_tokens_has_no_state():
    found = mean_states(MODEL, np.ones((2, 3), np.int32), np.array([0, 2], np.int32), 1)
    assert not np.any(found[0]) and np.any(found[1])


def test_without_the_question_its_state_is_0_and_the_others_as_before():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    hidden = without(jax.tree.map(np.asarray, batch), Role.QUESTION)
    assert hidden.role.dtype == batch.role.dtype and not np.any(hidden.role == Role.QUESTION)
    found = np.asarray(STATES(jax.tree.map(np.asarray, hidden)))
    np.testing.assert_allclose(found[:, :-1], STATES(batch)[:, :-1], rtol=1e-4, atol=1e-5)
    assert not found[:, -1].any()


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_scorer_of_pieces_read_apart_does_not_heed_what_all_share_nor_the_scale(scale):
    """Its scores are of the segments beside one another: order-free, as without another's."""
    batch = jax.tree.map(jax.numpy.asarray, batch_of((Prompt((2, 2, 2)), Prompt((2, 2, 2))), LENGTH, SEGMENTS))
    pieces = np.random.default_rng(0).normal(size=(2, SEGMENTS + 1, 16)).astype(np.float32)
    scorer = tiny_scorer("pooled", apart=True)
    expected = scorer(batch, pieces).segments[:, :3]
    np.testing.assert_allclose(scorer(batch, scale * (pieces + 3.0)).segments[:, :3], expected, rtol=1e-2, atol=1e-2)
    turned = np.concatenate([np.roll(pieces[:, :3], 1, axis=1), pieces[:, 3:]], axis=1)
    np.testing.assert_allclose(
        scorer(batch, turned).segments[:, :3], np.roll(expected, 1, axis=1), rtol=1e-3, atol=1e-4
    )
