"""Reading with gates: the formulas written out, what a drop means, and the model as it was where nothing is dropped."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn.alpha_sigmoid import alpha_sigmoid
from rcp.nn.gated import gated_attention, read_gated
from rcp.nn.interaction import init_interaction, interaction_scores, project, survival
from rcp.nn.transformer import Projected
from tests.eviction.small import small_model

TOKENS, RANK = 11, 4
LENGTHS = np.asarray([11, 8], np.int32)
MODEL = small_model()
IDS = np.random.default_rng(0).integers(1, 24, (2, TOKENS)).astype(np.int32)


GATES = init_interaction(2, 16, RANK, 1.0, jax.random.key(3))


def interaction(beta: float = 1.0):
    return {**GATES, "beta": np.full(2, beta, np.float32)}


@partial(jax.jit, static_argnames=("block", "hard"))
def read(gates, tokens, alpha, *, block=4, hard=False):
    return read_gated(MODEL, gates, tokens, alpha=None if hard else alpha, lengths=LENGTHS, block=block)


def projected(seed: int) -> Projected:
    """What one layer of two query heads and one key-value head is given, at random."""
    keys = iter(jax.random.split(jax.random.key(seed), 6))

    def draw(*shape: int):
        return jax.random.normal(next(keys), (2, TOKENS, *shape))

    q, k, v, x = draw(2, 8), draw(1, 8), draw(1, 8), draw(16)
    return Projected(x, q, k, q, k, v)


def by_hand(p: Projected, layer, alpha: float | None, lengths) -> tuple[np.ndarray, np.ndarray]:
    """Attention with log I added to the logits, and the mean of I over the pairs that count; in float64, by loops."""
    x = np.asarray(p.x, np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    asks, shows = x @ np.asarray(layer["q"], np.float64), x @ np.asarray(layer["k"], np.float64)
    s = np.einsum("bnr,bjr->bnj", asks, shows) / RANK**0.5 + float(layer["beta"])
    gate = (s > 0).astype(float) if alpha is None else np.asarray(alpha_sigmoid(jnp.asarray(s), alpha), np.float64)
    mixed, kept = np.zeros((2, TOKENS, 2, 8)), np.zeros(2)
    for b, length in enumerate(lengths):
        left = np.ones((length, length))
        for n in range(length):
            for j in range(n):
                left[n, j] = left[n - 1, j] * gate[b, n, j]
        for n in range(length):
            for head in range(2):
                k, v = np.asarray(p.k, np.float64)[b, :, 0], np.asarray(p.v, np.float64)[b, :, 0]
                logits = k[: n + 1] @ np.asarray(p.q, np.float64)[b, n, head] / 8**0.5
                weights = np.exp(logits) * left[n, : n + 1]
                mixed[b, n, head] = weights / weights.sum() @ v[: n + 1]
        kept[b] = sum(left[n, :n].sum() for n in range(length - 1))
    return mixed, kept


@pytest.mark.parametrize("alpha", [None, 1.0, 2.5])
def test_a_layer_is_the_formula(alpha):
    p, layer = projected(1), {name: x[0] for name, x in interaction(0.5).items()}
    valid = np.arange(TOKENS)[None] < LENGTHS[:, None]
    mixed, kept = jax.jit(lambda p, layer: gated_attention(p, layer, alpha, jnp.asarray(valid), 4))(p, layer)
    expected, total = by_hand(p, layer, alpha, LENGTHS)
    assert 0.1 < total[0] / 45 < 0.9  # something is dropped, and something is left
    np.testing.assert_allclose(np.asarray(mixed)[valid], expected[valid], atol=2e-5)
    np.testing.assert_allclose(kept, total, rtol=1e-5)


def test_with_open_gates_it_is_the_model_as_it_was():
    found = read(interaction(1e6), IDS, jnp.float32(3.0))
    plain = jax.jit(lambda tokens: MODEL.hidden(tokens, lengths=LENGTHS))(IDS)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found.h[row, :length], plain[row, :length], atol=2e-5)
    np.testing.assert_allclose(found.kept, 1.0, rtol=1e-6)


def test_blocks_and_padding_change_nothing():
    """The row of 8 tokens alone, at once, is the row among others, in blocks."""
    found = read(interaction(), IDS, jnp.float32(2.0))
    alone = jax.jit(lambda t: read_gated(MODEL, interaction(), t, alpha=jnp.float32(2.0)))(IDS[1:, :8])
    np.testing.assert_allclose(found.h[1, :8], alone.h[0], atol=2e-5)
    np.testing.assert_allclose(found.kept[:, 1], alone.kept[:, 0], rtol=1e-5)


def test_a_large_alpha_is_the_step_function():
    soft, hard = read(interaction(), IDS, jnp.float32(1e5)), read(interaction(), IDS, None, hard=True)
    np.testing.assert_allclose(soft.h, hard.h, atol=1e-4)
    np.testing.assert_allclose(soft.kept, hard.kept, atol=1e-5)
    assert 0.1 < float(hard.kept.mean()) < 0.95


def test_a_drop_is_for_good_and_never_of_oneself():
    layer = {name: x[1] for name, x in interaction(0.0).items()}
    own = project(layer, projected(2).x)
    scores = interaction_scores(own.q, own.k, layer["beta"])
    left = np.asarray(survival(jnp.ones((2, TOKENS)), scores, jnp.float32(3.0), start=0))
    assert np.all(np.diff(left, axis=1) <= 0)
    np.testing.assert_array_equal(left[:, np.arange(TOKENS), np.arange(TOKENS)], 1.0)
    np.testing.assert_array_equal(np.triu(left, 1), np.triu(np.ones_like(left), 1))
    gone = np.asarray(scores)[0] < -0.5
    for n, j in zip(*np.nonzero(np.tril(gone, -1)), strict=True):
        assert np.all(left[0, n:, j] == 0)


def test_nothing_depends_on_later_tokens():
    changed = IDS.copy()
    changed[:, 7:] = 1 + (IDS[:, 7:] + 3) % 23
    one, other = (read(interaction(), tokens, jnp.float32(2.0)).h for tokens in (IDS, changed))
    np.testing.assert_array_equal(one[:, :7], other[:, :7])
    assert np.abs(one[0, 7:] - other[0, 7:]).max() > 1e-3


def test_gradients_are_finite_where_gates_are_0_and_agree_with_differences():
    """alpha 1.5: a gate's slope has no jump, yet some gates are exactly 0. The loss is of what is mixed and left."""
    p, valid = projected(4), jnp.asarray(np.arange(TOKENS)[None] < LENGTHS[:, None])
    layer = {name: x[0] for name, x in interaction(-0.5).items()}
    own = project(layer, p.x)
    assert np.any(np.tril(interaction_scores(own.q, own.k, layer["beta"]), -1) < -2)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(layer, x):
        mixed, kept = gated_attention(p._replace(x=x), layer, jnp.float32(1.5), valid, 6)
        return jnp.sum(jnp.where(valid[..., None, None], mixed, 0.0) * jnp.sin(p.q)) + kept.sum() / 50

    slope = loss(layer, p.x)[1]
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slope))
    along = jax.tree.map(lambda x: 1e-3 * x / jnp.max(jnp.abs(x)), slope)
    ahead, behind = (loss(*jax.tree.map(lambda x, d, s=s: x + s * d, (layer, p.x), along))[0] for s in (1, -1))
    predicted = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(along), strict=True))
    assert float(predicted) > 1e-3
    np.testing.assert_allclose((ahead - behind) / 2, predicted, rtol=0.02)
