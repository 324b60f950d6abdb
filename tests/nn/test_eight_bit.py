"""Products with int8 matrices against float64, and decoding by rounded weights against a model that has just these."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.nn.eight_bit import EightBit, eight_bit, linear_8bit, product_8bit
from rcp.nn.lora import apply_lora, init_lora
from rcp.nn.parameters import MATRICES
from rcp.nn.step import laid_cache, logits_of, room, step, unstacked
from rcp.nn.transformer import Transformer
from tests.eviction.small import VOCABULARY, small_model


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 3),
    n=st.integers(1, 4),
    inner=st.sampled_from((1, 5, 64)),
    outer=st.sampled_from((1, 7)),
    axis=st.sampled_from((1, 2)),
    numbers=st.sampled_from((2, 3)),
    size=st.sampled_from((0.0, 1e-20, 1.0, 1e20)),
)
def test_a_product_is_that_of_float64_but_for_what_its_numbers_round_off(
    seed, rows, n, inner, outer, axis, numbers, size
):
    rng = np.random.default_rng(seed)
    x = (size * rng.normal(size=(rows, n, inner))).astype(np.float32)
    y = rng.integers(-127, 128, (rows, inner, outer) if axis == 1 else (rows, outer, inner)).astype(np.int8)
    found = product_8bit(jnp.asarray(x), jnp.asarray(y), inner=axis, numbers=numbers)
    whole = (y if axis == 1 else y.swapaxes(1, 2)).astype(np.float64)
    most = (
        np.abs(x).max(axis=2, keepdims=True)
        * ((2.0**-16 if numbers == 2 else 0) + 1e-6)
        * np.abs(whole).sum(axis=1, keepdims=True)
    )
    assert found.shape == (rows, n, outer) and found.dtype == jnp.float32
    assert np.all(np.abs(np.asarray(found, np.float64) - x.astype(np.float64) @ whole) <= most)


def test_the_largest_weight_of_an_output_is_127_and_none_is_off_by_more_than_half_a_step():
    weight = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    weight[3] = 0
    values, scale = eight_bit(jnp.asarray(weight))
    assert values.dtype == jnp.int8 and np.abs(values).max(axis=1).tolist() == [127, 127, 127, 0, 127]
    assert np.all(np.abs(values * scale[:, None] - weight) <= scale[:, None] * 0.5001)
    x = jnp.ones((2, 1, 33))
    np.testing.assert_allclose(
        linear_8bit(x, EightBit(values, scale), jnp.dtype("float32")), x @ (values.T * scale[None]), rtol=1e-4
    )


def rounded_model(model: Transformer) -> Transformer:
    """The model with the weights that 8 bits stand for, embeddings of inputs excepted."""

    def back(weight):  # [layers, inputs, outputs]
        found = eight_bit(weight.swapaxes(-1, -2))
        return (found.values * found.scale[..., None]).swapaxes(-1, -2)

    layers = {name: back(w) if name in MATRICES else w for name, w in model.layers.tree().items()}
    params = {"embedding": model.embedding[...], "layers": layers, "norm": model.norm[...]}
    return Transformer(model.config, params=params)


@pytest.mark.parametrize("lora", [False, True])
def test_rounded_weights_decode_as_a_model_that_has_them(lora):
    model, expected = small_model(), rounded_model(small_model())
    assert model.head is None
    if lora:
        update = init_lora({"layers": model.layers.tree()}, 2, jax.random.key(1))
        update = {name: {**w, "b": w["b"] + 0.1} for name, w in update.items()}
        for each in (model, expected):
            for name, value in apply_lora({"layers": each.layers.tree()}, update)["layers"].items():
                setattr(each.layers, name, nnx.Param(value))
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, VOCABULARY, (3, 4)))
    states = []
    for each, weights in ((model, unstacked(model, int8=True)), (expected, unstacked(expected))):
        past = laid_cache(each.new_cache(3, 1), 0)
        h, _ = step(each, weights, past, room(each, 3, 4), 0, tokens, jnp.zeros(3, jnp.int32))
        states.append((h, weights))
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=2e-3, atol=2e-3)
    head = eight_bit(model.embedding[...])
    own = states[0][0] @ (head.values * head.scale[:, None]).T
    np.testing.assert_allclose(logits_of(model, states[0][1], states[0][0]), own, rtol=2e-3, atol=2e-3)
