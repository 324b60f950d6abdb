"""Segments and pieces of a batch against a plain loop over its tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn import layout
from rcp.types import Role
from tests.tiny import Prompt, batch_of

LENGTH, SEGMENTS = 18, 5
ROWS = (Prompt((2, 3, 1)), Prompt((1, 0, 2, 3), instruction=0, question=3, answer=2), Prompt((4,)))
SIZES = np.asarray([[2, 3, 1, 0, 0], [1, 0, 2, 3, 0], [4, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def batch():
    return batch_of(ROWS, LENGTH, SEGMENTS)


def test_counts(batch):
    np.testing.assert_array_equal(layout.segment_lengths(batch), SIZES)
    np.testing.assert_array_equal(layout.segment_exists(batch), SIZES > 0)
    np.testing.assert_array_equal(layout.context_tokens(batch), SIZES.sum(1))
    np.testing.assert_array_equal(layout.prompt_lengths(batch), (batch.role != Role.PAD).sum(1))
    np.testing.assert_array_equal(layout.in_context(batch), batch.role == Role.CONTEXT)


def test_a_token_belongs_to_its_own_segment_alone(batch):
    member = np.asarray(layout.membership(batch))
    for row, place in np.ndindex(*batch.role.shape):
        expected = [batch.role[row, place] == Role.CONTEXT and batch.segment[row, place] == s for s in range(SEGMENTS)]
        assert member[row, place].tolist() == expected


def test_means_are_over_the_tokens_of_a_segment(batch):
    values = np.random.default_rng(0).normal(size=(*batch.role.shape, 3)).astype(np.float32)
    found = np.asarray(layout.segment_means(values, batch))
    np.testing.assert_allclose(layout.segment_means(values[..., 0], batch), found[..., 0], rtol=1e-6)
    for row, segment in np.ndindex(*SIZES.shape):
        own = values[row, batch.segment[row] == segment]
        np.testing.assert_allclose(found[row, segment], own.mean(0) if len(own) else 0, rtol=1e-5, atol=1e-7)


def test_values_of_segments_reach_their_tokens(batch):
    values = jnp.arange(3 * SEGMENTS).reshape(3, SEGMENTS)
    found, context = np.asarray(layout.of_segment(values, batch)), batch.role == Role.CONTEXT
    expected = np.asarray(values)[np.nonzero(context)[0], batch.segment[context]]
    np.testing.assert_array_equal(found[context], expected)


def test_places_count_from_the_beginning_of_each_piece(batch):
    groups, places = np.asarray(layout.groups(batch)), np.asarray(layout.places(batch))
    for row in range(len(ROWS)):
        pieces = list(zip(batch.role[row].tolist(), batch.segment[row].tolist()))
        assert len(set(pieces)) == len(set(groups[row].tolist()))
        assert groups[row].max() < SEGMENTS + len(Role)
        for place, piece in enumerate(pieces):
            assert places[row, place] == place - pieces.index(piece)
            assert groups[row, place] == groups[row, pieces.index(piece)]
