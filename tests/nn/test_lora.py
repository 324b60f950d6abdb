"""Low-rank updates: none at first, of the rank asked for, in the weights' own dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.lora import TARGETS, apply_lora, init_lora
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def params():
    return nnx.to_pure_dict(nnx.split(tiny_model())[1])


def test_nothing_changes_at_first_and_only_b_learns_then(params):
    lora = init_lora(params, 2, jax.random.key(0))
    assert set(lora) == set(TARGETS)
    jax.tree.map(np.testing.assert_array_equal, apply_lora(params, lora), params)

    def total(lora):
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(apply_lora(params, lora)["layers"]))

    slope = jax.jit(jax.grad(total))(lora)
    for name in TARGETS:
        assert not np.any(slope[name]["a"])
        assert np.any(slope[name]["b"])


def test_each_projection_moves_by_a_product_of_the_given_rank(params):
    lora = init_lora(params, 2, jax.random.key(0))
    lora = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), lora)
    changed = apply_lora(params, lora)
    for name, weight in params["layers"].items():
        moved = np.asarray(changed["layers"][name]) - np.asarray(weight)
        if name not in TARGETS:
            assert not np.any(moved)
            continue
        for layer in range(2):
            product = np.asarray(lora[name]["a"][layer]) @ np.asarray(lora[name]["b"][layer])
            np.testing.assert_allclose(moved[layer], product, atol=1e-5)
            assert np.linalg.matrix_rank(moved[layer], tol=1e-3) == 2
    np.testing.assert_array_equal(changed["embedding"], params["embedding"])


def test_weights_keep_their_dtype(params):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    changed = apply_lora(low, init_lora(low, 1, jax.random.key(0)))
    assert {x.dtype for x in jax.tree.leaves(changed)} == {jnp.dtype(jnp.bfloat16)}
