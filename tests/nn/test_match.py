"""Attention of the scorers in blocks: the same numbers as at once, and no array of tokens x tokens."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn import match
from rcp.nn.scorer import Scorer, ScorerConfig
from tests.tiny import Prompt, batch_of, tiny_scorer


def value_and_slope(graph, batch):
    """Squared scores and their gradient, as a function of (parameters, features)."""

    def loss(params, features):
        scores = nnx.merge(graph, params)(batch, features)
        return jnp.sum(jnp.square(scores.tokens)) + jnp.sum(jnp.square(scores.segments)), scores

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def test_blocks_give_what_all_at_once_gives(monkeypatch):
    """Values and gradients, with padding, for lengths that blocks divide and that they do not."""
    rows = (Prompt((2, 3, 1), instruction=2, answer=2), Prompt((1, 3, 2, 3), instruction=0, question=3))
    graph, params = nnx.split(tiny_scorer("hidden", depth=2))
    for length in (16, 21):
        batch = jax.tree.map(jnp.asarray, batch_of(rows, length, 4))
        features = jax.random.normal(jax.random.key(0), (2, length, 16))
        dense = jax.jit(value_and_slope(graph, batch))(params, features)
        with monkeypatch.context() as patch:
            patch.setattr(match, "DENSE_LIMIT", 8)
            patch.setattr(match, "BLOCK", 8)
            blocked = jax.jit(value_and_slope(graph, batch))(params, features)
        for x, y in zip(jax.tree.leaves(blocked), jax.tree.leaves(dense)):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.abs(y).max())))


def sizes(jaxpr):
    """Elements of every array that a program makes, those of its loops and branches too."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.parametrize(("tokens", "squares"), [(2048, False), (match.DENSE_LIMIT, True)])
def test_long_contexts_make_no_array_of_tokens_by_tokens(tokens, squares):
    """Forward and backward. Short ones do, which shows that the test would see it."""
    graph, params = nnx.split(Scorer(ScorerConfig("hidden", 16, 32, 2, 2), nnx.Rngs(0)))
    batch = jax.tree.map(jnp.asarray, batch_of((Prompt((30,) * (tokens // 32)),), tokens, tokens // 32))
    jaxpr = jax.make_jaxpr(value_and_slope(graph, batch))(params, jnp.zeros((1, tokens, 16)))
    assert (max(sizes(jaxpr.jaxpr)) >= tokens**2) == squares
