"""Low-rank updates: none at first, of the rank asked for, and not lost beside weights of a low precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.layers import LowRank, linear
from rcp.nn.lora import TARGETS, apply_lora, init_lora
from rcp.nn.transformer import Transformer
from tests.tiny import tiny_model

TOKENS = jax.random.randint(jax.random.key(5), (2, 9), 0, 24, jnp.int32)


@pytest.fixture(scope="module")
def params():
    return nnx.to_pure_dict(nnx.split(tiny_model())[1])


def logits_of(params, lora=None, dtype="float32", tokens=TOKENS):
    graph, _ = nnx.split(Transformer(tiny_model().config, rngs=nnx.Rngs(0), dtype=dtype))
    return jax.jit(lambda p, f: nnx.merge(graph, p if f is None else apply_lora(p, f))(tokens))(params, lora)


def random_lora(params, size: float):
    """Factors whose products are about `size` times the weights."""
    lora = init_lora(params, 2, jax.random.key(0))
    for number, name in enumerate(TARGETS):
        b = lora[name]["b"]
        lora[name]["b"] = size * jax.random.normal(jax.random.key(number), b.shape)
    return lora


def test_nothing_changes_at_first_and_only_b_learns_then(params):
    lora = init_lora(params, 2, jax.random.key(0))
    assert set(lora) == set(TARGETS)
    np.testing.assert_allclose(logits_of(params, lora), logits_of(params), rtol=1e-5, atol=1e-5)
    graph = nnx.split(tiny_model())[0]

    def total(lora):
        return jnp.sum(jnp.square(nnx.merge(graph, apply_lora(params, lora))(TOKENS)))

    slope = jax.jit(jax.grad(total))(lora)
    for name in TARGETS:
        assert not np.any(slope[name]["a"])
        assert np.any(slope[name]["b"])


def test_it_is_the_model_whose_projections_moved_by_the_product(params):
    lora = random_lora(params, 0.1)
    moved = {name: params["layers"][name] + jnp.einsum("lir,lro->lio", f["a"], f["b"]) for name, f in lora.items()}
    merged = {**params, "layers": {**params["layers"], **moved}}
    found = logits_of(params, lora)
    assert np.abs(found - logits_of(params)).max() > 0.1
    np.testing.assert_allclose(found, logits_of(merged), rtol=1e-4, atol=1e-4)
    for name in TARGETS:
        for layer in range(2):
            product = np.asarray(lora[name]["a"][layer]) @ np.asarray(lora[name]["b"][layer])
            assert np.linalg.matrix_rank(product, tol=1e-5) == 2


def test_a_product_gets_an_update_that_its_precision_cannot_hold():
    """Below half of bfloat16's spacing at W the sum W + A B is W; x W + (x A) B is not x W."""
    x, a = jax.random.normal(jax.random.key(0), (5, 8)), jax.random.normal(jax.random.key(1), (8, 2))
    weight = 1 + jax.random.uniform(jax.random.key(2), (8, 6))
    low, b = weight.astype(jnp.bfloat16), 1e-4 * jax.random.normal(jax.random.key(3), (2, 6))
    np.testing.assert_array_equal((low.astype(jnp.float32) + a @ b).astype(jnp.bfloat16), low)
    moved = linear(x, LowRank(low, a, b), jnp.bfloat16) - linear(x, low, jnp.bfloat16)
    np.testing.assert_allclose(moved, x @ a @ b, rtol=1e-2, atol=1e-6)


def test_a_small_update_moves_logits_in_bfloat16_as_in_float32(params):
    """On weights that bfloat16 holds exactly. The rounding of activations is noise, which many tokens average out."""
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    lora = random_lora(params, 3e-4)
    tokens = jax.random.randint(jax.random.key(5), (256, 16), 0, 24, jnp.int32)
    expected = logits_of(exact, lora, tokens=tokens) - logits_of(exact, tokens=tokens)
    found = logits_of(low, lora, "bfloat16", tokens) - logits_of(low, None, "bfloat16", tokens)
    assert 0.8 < jnp.vdot(found, expected) / jnp.vdot(expected, expected) < 1.2


def test_the_sum_of_weights_and_update_is_never_made(params):
    """No operation gives an array of a matrix's shape: what is made is x W and (x A) B."""
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    graph = nnx.split(tiny_model())[0]
    lora = random_lora(params, 0.1)
    changed = apply_lora(low, lora)
    for name in TARGETS:
        assert changed["layers"][name].weight is low["layers"][name]
    shapes = {low["layers"][name].shape for name in TARGETS}
    jaxpr = jax.make_jaxpr(lambda p, f: nnx.merge(graph, apply_lora(p, f))(TOKENS))(low, lora)
    made = {tuple(v.aval.shape) for e in jaxpr.eqns if e.primitive.name in ("add", "dot_general") for v in e.outvars}
    assert not shapes & made


def test_an_adapted_model_can_be_split_and_stopped_early(params):
    graph = nnx.split(tiny_model())[0]
    model = nnx.merge(graph, apply_lora(params, random_lora(params, 0.1)))
    again = nnx.merge(*nnx.split(model))
    np.testing.assert_array_equal(again(TOKENS), model(TOKENS))
    middle = again.hidden(TOKENS, stop=1)
    np.testing.assert_allclose(again.hidden(None, inputs=middle, start=1), model.hidden(TOKENS), atol=1e-4)
