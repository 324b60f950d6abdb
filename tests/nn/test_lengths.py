"""One compile for several static lengths; a batch costs what its longest prompt needs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.lengths import PARTS, of_lengths, of_own_length, shortened
from rcp.nn.reader import read
from rcp.types import Batch
from tests.tiny import Prompt, batch_of, tiny_model

ROWS = (Prompt((2, 3, 1), instruction=2, answer=2), Prompt((1, 3), question=3, answer=1))
GRAPH, PARAMS = nnx.split(tiny_model())


def width(params, batch: Batch):
    return jnp.int32(batch.tokens.shape[1])


@pytest.mark.parametrize(("whole", "expected"), [(16, 16), (40, 24), (64, 40), (100, 56)])
def test_the_shortest_part_that_holds_every_prompt_is_read(whole, expected):
    """The longest prompt has 13 tokens or fewer; of 40 the parts are 24, 28 -> 32, 34 -> 40 and 40."""
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, whole, 4))
    assert int(jax.jit(of_own_length(width))(None, batch)) == expected
    full = batch._replace(role=jnp.full_like(batch.role, 2))
    assert int(jax.jit(of_own_length(width))(None, full)) == whole


def test_reading_at_its_own_length_changes_nothing_and_compiles_once():
    traced = []

    def reading(params, batch: Batch):
        traced.append(batch.tokens.shape[1])
        return read(nnx.merge(GRAPH, params), batch, max_answer=3)

    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, 48, 4))
    found = jax.jit(of_own_length(reading))
    expected = read(nnx.merge(GRAPH, PARAMS), batch, max_answer=3)
    short = found(PARAMS, batch)
    np.testing.assert_allclose(short.nll_sum, expected.nll_sum, rtol=1e-5)
    np.testing.assert_array_equal(short.exact, expected.exact)
    turned = found(PARAMS, jax.tree.map(lambda x: x[::-1], batch))
    np.testing.assert_allclose(turned.nll_sum, expected.nll_sum[::-1], rtol=1e-5)
    assert len(traced) <= len(PARTS)


def test_of_lengths_takes_the_length_whose_number_it_is_given():
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, 32, 4))
    switched = jax.jit(of_lengths(width, (16, 24, 32)))
    assert [int(switched(None, batch, jnp.int32(number))) for number in range(3)] == [16, 24, 32]
    assert shortened(batch, 20).tokens.shape == shortened(batch, 20).forced.shape == (2, 20)
