"""Attention against a dense formula in float64, and its promises about dropped keys, by differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn import attention as room
from rcp.nn.attention import Past

attention = jax.jit(room.attention, static_argnames=("block", "apart"))
B, T, H, KV, D = 2, 12, 4, 2, 8


@pytest.fixture
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (B, T, h, D)) for k, h in zip(keys, (H, KV, KV), strict=True))


def dense(q, k, v, weight):
    """Softmax with multiplicative weights [B, T, T], in float64, keys repeated per query head."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    mass = np.asarray(weight)[:, None] * np.exp(np.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5)
    return np.einsum("bhts,bshd->bthd", mass / mass.sum(-1, keepdims=True), v)


def weights(keep=None, valid=None):
    causal = np.tril(np.ones((T, T)))[None].repeat(B, 0)
    for x in (keep, valid):
        if x is not None:
            causal = causal * np.asarray(x, np.float64)[:, None, :]
    causal[:, np.arange(T), np.arange(T)] = 1
    return causal


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("block", [None, 5])
def test_equals_the_formula(qkv, block, apart):
    keep = jax.random.uniform(jax.random.key(1), (B, T)).at[0, 3].set(0.0)
    valid = jnp.arange(T)[None, :] < jnp.array([T, 9])[:, None]
    for options in ({}, {"keep": keep}, {"valid": valid}, {"keep": keep, "valid": valid}, {"keep": keep > 0.5}):
        out = attention(*qkv, **options, block=block, apart=apart)
        np.testing.assert_allclose(out, dense(*qkv, weights(**options)), atol=2e-6, err_msg=str(options.keys()))


def test_relaxed_keep_is_a_log_mask(qkv):
    """For keep > 0 the weights are softmax(scores + log keep)."""
    keep = jax.random.uniform(jax.random.key(1), (B, T), minval=0.01)
    np.testing.assert_allclose(attention(*qkv, keep=keep), dense(*qkv, weights(keep)), atol=2e-6)
    # And the gradient to keep is that of the formula, by central differences in float64.
    direction = jax.random.normal(jax.random.key(2), (B, T))
    slope = jnp.sum(jax.grad(lambda m: attention(*qkv, keep=m).sum())(keep) * direction)
    step = 1e-6
    ends = [dense(*qkv, weights(np.asarray(keep, np.float64) + s * np.asarray(direction))).sum() for s in (step, -step)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-4)


def test_dropped_key_has_zero_gradient_and_a_useful_gradient_to_keep(qkv):
    keep = jnp.ones((B, T)).at[:, 3].set(0.0)

    def others(q, k, v, keep):
        return (attention(q, k, v, keep=keep) * (jnp.arange(T) != 3)[None, :, None, None]).sum()

    _, to_k, to_v, to_keep = jax.grad(others, argnums=(0, 1, 2, 3))(*qkv, keep)
    assert (to_k[:, 3] == 0).all() and (to_v[:, 3] == 0).all()
    assert jnp.isfinite(to_keep).all() and (to_keep[:, 3] != 0).all()
    # The one-sided difference agrees: this is what keeping a little of the token would have changed.
    step = 1e-3
    nudged = others(*qkv, keep.at[0, 3].set(step)) - others(*qkv, keep)
    np.testing.assert_allclose(nudged / step, to_keep[0, 3], rtol=0.05, atol=1e-2)


def test_dropped_key_with_a_huge_score_overflows_nothing(qkv):
    q, k, v = qkv
    k = k.at[:, 3].mul(1e4)
    keep = jnp.ones((B, T)).at[:, 3].set(0.0)
    np.testing.assert_allclose(
        attention(q, k, v, keep=keep)[:, 4:], attention(q, qkv[1], v, keep=keep)[:, 4:], atol=1e-6
    )
    gradients = jax.jit(jax.grad(lambda *a: attention(*a[:3], keep=a[3]).sum(), argnums=(0, 1, 2, 3)))(q, k, v, keep)
    assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("weight", [1e-20, 1e-35])
def test_a_key_with_hardly_any_weight_and_a_high_score_has_finite_gradients(weight):
    """Its share is next to nothing, and so is the sum that all are divided by."""
    q = jnp.asarray([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    k = jnp.asarray([[[[80.0, 0.0]], [[0.0, 0.0]]]]) * 2.0**0.5

    def loss(q, k, v, keep):
        return jnp.sum(jnp.square(room.attention(q, k, v, keep=keep)))

    keep = jnp.asarray([[weight, 1.0]])
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, jnp.ones_like(k), keep)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_all_dropped_and_all_padding_leave_each_token_itself(qkv):
    expected = jnp.repeat(qkv[2], H // KV, axis=2)
    for options in ({"keep": jnp.zeros((B, T))}, {"valid": jnp.zeros((B, T), bool)}):
        np.testing.assert_allclose(attention(*qkv, **options), expected, atol=1e-6)


def test_past_is_seen_by_all_up_to_its_length(qkv):
    q, k, v = qkv
    whole, cut = attention(q, k, v), 7
    room = [jnp.pad(x[:, :cut], ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=5.0) for x in (k, v)]
    past = Past(room[0], room[1], jnp.full((B,), cut))
    np.testing.assert_allclose(attention(q[:, cut:], k[:, cut:], v[:, cut:], past=past), whole[:, cut:], atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_past_in_parts_with_lengths_of_each_head(qkv, apart):
    """Against the formula: one part with a length and keep values a head, one with a length an example."""
    q, k, v = qkv
    cut, rng = 7, np.random.default_rng(0)
    by_head, keep = jnp.array([[4, 2], [0, 4]]), rng.random((B, 4, KV)) * (rng.random((B, 4, KV)) < 0.7)
    by_example = jnp.array([3, 1])
    past = (
        Past(k[:, :4], v[:, :4], by_head, jnp.asarray(keep, jnp.float32)),
        Past(k[:, 4:cut], v[:, 4:cut], by_example),
    )
    out = attention(q[:, cut:], k[:, cut:], v[:, cut:], past=past, apart=apart)
    weight = np.tril(np.ones((T, T)))[None, None].repeat(B, 0).repeat(KV, 1)  # [B, KV, queries, keys]
    there = np.arange(4)[None, None] < np.asarray(by_head)[:, :, None]
    weight[..., :4] *= (there * np.swapaxes(keep, 1, 2))[:, :, None]
    weight[..., 4:cut] *= (np.arange(3)[None] < np.asarray(by_example)[:, None])[:, None, None]
    weight[:, :, :cut] = np.eye(T)[:cut]  # of the queries that are not asked for
    for head in range(H):
        one = [np.asarray(x)[:, :, i : i + 1] for x, i in ((q, head), (k, head // 2), (v, head // 2))]
        expected = dense(*one, weight[:, head // 2])[:, cut:, 0]
        np.testing.assert_allclose(out[:, :, head], expected, atol=2e-6)


def test_dropped_entries_of_the_past_tell_what_they_would_bring(qkv):
    """The gradient to their keep value is finite and not 0; that to their key and value is exactly 0."""
    q, k, v = qkv

    def loss(k, v, keep):
        past = Past(k[:, :4], v[:, :4], jnp.full((B,), 4), keep)
        return jnp.square(attention(q[:, 4:], k[:, 4:], v[:, 4:], past=past)).sum()

    keep = jnp.ones((B, 4, KV)).at[:, 1].set(0.0)
    to_k, to_v, to_keep = jax.grad(loss, argnums=(0, 1, 2))(k, v, keep)
    assert not np.any(to_k[:, 1]) and not np.any(to_v[:, 1])
    assert jnp.isfinite(to_keep).all() and (to_keep[:, 1] != 0).all()


def test_heads_attended_apart_have_the_gradients_of_all_together(qkv):
    """Of keys in int8 too, and of keep values here and in the past."""
    q, k, v = qkv
    rng = np.random.default_rng(0)
    keep, of_past = jnp.asarray(rng.random((B, T))), jnp.asarray(rng.random((B, 3, KV)))
    whole = [jnp.asarray(rng.integers(-127, 128, (B, 3, KV, D)), jnp.int8) for _ in range(2)]
    scales = tuple(jnp.asarray(rng.random((B, 3, KV)) / 64) for _ in range(2))

    def loss(apart, q, k, v, keep, of_past, scales):
        past = (Past(k[:, :4], v[:, :4], jnp.array([4, 2]), None), Past(*whole, jnp.array([2, 3]), of_past, scales))
        return jnp.square(attention(q, k, v, keep=keep, past=past, apart=apart)).sum()

    given = (q, k, v, keep, of_past, scales)
    found, expected = (jax.value_and_grad(loss, argnums=range(1, 7))(apart, *given) for apart in (True, False))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_long_inputs_are_blocked():
    """Past 1,024 tokens no array of tokens x tokens is made, forward or backward, and the result is the dense one's."""
    tokens, keys = 1500, jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, tokens, 2, 8)) for key in keys)
    keep = jnp.ones((1, tokens)).at[:, 100:200].set(0.0)

    def loss(q, k, v, keep, block=None):
        return jnp.square(attention(q, k, v, keep=keep, block=block)).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, keep).compile().as_text()
    assert f"{tokens},{tokens}" not in text
    blocked = jax.jit(jax.value_and_grad(loss, argnums=(0, 3)))(q, k, v, keep)
    whole = jax.jit(jax.value_and_grad(lambda *a: loss(*a, block=tokens), argnums=(0, 3)))(q, k, v, keep)
    for a, b in zip(jax.tree.leaves(blocked), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
