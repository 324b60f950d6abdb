"""What is read of every segment: numbers, rows and trees of them, of prompts at about their own length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn.each_segment import each_segment, widely
from rcp.types import Batch, Role
from tests.tiny import Prompt, batch_of

ROWS = (Prompt((6, 2, 11), instruction=2, answer=2), Prompt((1, 3), question=3, answer=1))
LENGTH = 40


def told(prompts: Batch):
    """The width it was read at, the sum of the tokens, and the tokens themselves."""
    tokens = jnp.asarray(prompts.tokens)
    row = jnp.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
    return {"width": jnp.full(tokens.shape[0], tokens.shape[1]), "sum": jnp.sum(tokens, axis=1), "row": row}


@pytest.mark.parametrize("beside", [False, True])
def test_every_segment_has_what_its_own_prompt_gives(beside: bool):
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, 48, 4))
    asks = (batch.role == Role.QUESTION) & beside
    found = jax.jit(lambda batch: each_segment(told, lambda inside: inside | asks, batch, LENGTH))(batch)
    found, tokens, segment = jax.tree.map(np.asarray, (found, batch.tokens, batch.segment))
    assert found["row"].shape == (2, 4, LENGTH) and found["sum"].shape == (2, 4)
    for row in range(2):
        for s in range(4):
            expected = tokens[row, (segment[row] == s) | np.asarray(asks[row])]
            np.testing.assert_array_equal(found["row"][row, s, : len(expected)], expected)
            assert not found["row"][row, s, len(expected) :].any() and found["sum"][row, s] == expected.sum()


def test_the_shortest_of_every_example_are_read_together_at_the_least_length_that_holds_them():
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, 48, 4))
    found = each_segment(told, lambda inside: inside, batch, LENGTH, lambda whole: [2, 4, 8, whole])
    # by length: 0, 2, 6, 11 and 0, 0, 1, 3 tokens
    np.testing.assert_array_equal(found["width"], [[8, 2, LENGTH, 2], [8, LENGTH, 2, 2]])
    assert widely(272) == [96, 152, 160, 192, 232, 272]
