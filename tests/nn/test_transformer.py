"""The decoder's promises: causality, masking equals dropping, caching, padding, blocking, low precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.layers import linear, tied_linear
from rcp.nn.parameters import TransformerConfig, parameter_shapes
from rcp.nn.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, qkv_bias=True, qk_norm=True
)
B, T = 2, 14


def build(config=CONFIG, dtype="float32", scale=8.0, **options):
    """Initial weights enlarged, so that attention is far from uniform."""
    model = Transformer(config, rngs=nnx.Rngs(0), dtype=dtype, **options)
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: (x * scale).astype(x.dtype) if x.ndim > 2 else x, params))


class Compiled:
    """A model whose calls are compiled whole, not one operation at a time."""

    def __init__(self, model):
        self.new_cache = model.new_cache
        self.embed = jax.jit(model.embed)
        self.hidden = jax.jit(model.hidden, static_argnames=("slots", "start", "stop"))
        self._call = jax.jit(lambda tokens, options: model(tokens, **options))

    def __call__(self, tokens, **options):
        return self._call(tokens, options)


@pytest.fixture(scope="module")
def model():
    return Compiled(build())


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (B, T), 0, CONFIG.vocab_size)


def test_no_token_sees_a_later_one(model, tokens):
    """By differentiation: d output[t] / d input[s] is exactly 0 for s > t, and not 0 for s <= t."""
    inputs = model.embed(tokens[:1])

    def output(x):
        return model.hidden(None, inputs=x)[0].sum(-1)

    influence = jnp.abs(jax.jit(jax.jacobian(output))(inputs)).sum((-1, -3))  # [T out, T in]
    seen = np.tril(np.ones((T, T), bool))
    assert (np.asarray(influence)[~seen] == 0).all()
    assert (np.asarray(influence)[seen] > 0).all()


def test_dropped_token_gets_exactly_zero_gradient(model, tokens):
    inputs = model.embed(tokens)
    dropped = jnp.array([2, 5, 6])
    keep = jnp.ones((B, T)).at[:, dropped].set(0.0)

    def last(x, keep):
        return model.hidden(None, inputs=x, keep=keep)[:, -1].sum()

    to_inputs, to_keep = jax.jit(jax.grad(last, argnums=(0, 1)))(inputs, keep)
    assert (to_inputs[:, dropped] == 0).all()
    assert (jnp.abs(to_inputs).sum(-1)[:, np.setdiff1d(np.arange(T), dropped)] > 0).all()
    assert jnp.isfinite(to_keep).all() and (to_keep[:, dropped] != 0).all()


def test_masking_equals_dropping(model, tokens):
    """Logits under a mask with original positions are those of the really shortened input at those positions."""
    kept = jnp.array([0, 1, 3, 4, 7, 8, 9, 12, 13])
    keep = jnp.zeros((B, T)).at[:, kept].set(1.0)
    positions = jnp.broadcast_to(kept, (B, len(kept)))
    shortened = model(tokens[:, kept], positions=positions)
    for mask in (keep, keep > 0, jnp.broadcast_to(keep, (2, B, T))):
        np.testing.assert_allclose(model(tokens, keep=mask)[:, kept], shortened, atol=2e-5)
    # Repacked positions: the shortened input counted from 0.
    repacked = jnp.maximum(jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1, 0)
    masked = model(tokens, keep=keep, positions=repacked)[:, kept]
    np.testing.assert_allclose(masked, model(tokens[:, kept]), atol=2e-5)
    assert jnp.abs(masked - shortened).max() > 1e-2


def test_per_layer_keep_differs_from_one_for_all(model, tokens):
    keep = jnp.ones((2, B, T)).at[1, :, 4].set(0.0)
    out = model(tokens, keep=keep)
    assert jnp.abs(out - model(tokens)).max() > 1e-3
    assert jnp.abs(out - model(tokens, keep=keep[1])).max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_examples(model, tokens, side):
    length = 9
    pad = jnp.zeros((T - length,), jnp.int32)
    row = tokens[1, :length]
    padded = jnp.concatenate([pad, row] if side == "left" else [row, pad])
    valid = (
        jnp.ones((B, T), bool)
        .at[1, jnp.arange(T) < T - length if side == "left" else jnp.arange(T) >= length]
        .set(False)
    )
    out = model(jnp.stack([tokens[0], padded]), valid=valid)
    np.testing.assert_allclose(out[0], model(tokens[:1])[0], atol=2e-5)
    np.testing.assert_allclose(out[1][valid[1]], model(row[None])[0], atol=2e-5)
    if side == "right":  # lengths say the same, bit for bit
        lengths = jnp.array([T, length])
        np.testing.assert_array_equal(model(jnp.stack([tokens[0], padded]), lengths=lengths), out)
        keep = jnp.ones((B, T)).at[:, 3].set(0.0)
        both = [model(jnp.stack([tokens[0], padded]), keep=keep, **o) for o in ({"valid": valid}, {"lengths": lengths})]
        np.testing.assert_array_equal(*both)


def test_cached_reading_equals_reading_at_once(model, tokens):
    """In pieces, with right padding in the first piece, then token by token."""
    lengths = jnp.array([6, 4])
    cache, step = model.new_cache(B, 16), lambda t, v, c: model(t, valid=v, cache=c)
    valid = jnp.arange(6)[None, :] < lengths[:, None]
    logits, cache = step(tokens[:, :6], valid, cache)
    rows = [tokens[0, :6], tokens[1, :4]]
    for extra in range(3):
        rows = [jnp.append(row, tokens[b, 8 + extra]) for b, row in enumerate(rows)]
        logits, cache = step(tokens[:, 8 + extra][:, None], jnp.ones((B, 1), bool), cache)
    assert cache.length.tolist() == [9, 7] == cache.position.tolist()
    for b, row in enumerate(rows):
        np.testing.assert_allclose(logits[b, -1], model(row[None])[0, -1], atol=2e-5)


def test_slots_bound_what_is_looked_at(model, tokens):
    """What stands at later slots does not matter, though it be no number."""
    cache = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if x.ndim > 1 else x, model.new_cache(B, T))
    first, cache = model.hidden(tokens[:, :6], cache=cache, slots=0)
    second, _ = model.hidden(tokens[:, 6:], cache=cache, slots=6)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), model.hidden(tokens), atol=2e-5)


def test_cache_drops_what_keep_drops(model, tokens):
    """A hard keep at prefill leaves the later tokens the same model."""
    keep = jnp.ones((B, T - 1), bool).at[:, jnp.array([2, 3, 8])].set(False)
    _, cache = model(tokens[:, :-1], keep=keep, cache=model.new_cache(B, T))
    assert cache.length.tolist() == [10, 10] and cache.position.tolist() == [13, 13]
    logits, _ = model(tokens[:, -1:], cache=cache)
    full = model(tokens, keep=jnp.concatenate([keep, jnp.ones((B, 1), bool)], axis=1))
    np.testing.assert_allclose(logits[:, 0], full[:, -1], atol=2e-5)


def test_stopping_and_starting_again_is_one_run(model, tokens):
    middle = model.hidden(tokens, stop=1)
    np.testing.assert_allclose(model.hidden(None, inputs=middle, start=1), model.hidden(tokens), atol=1e-5)
    np.testing.assert_allclose(model.hidden(tokens, stop=0), model.embed(tokens))


def test_bfloat16_is_close_and_its_gradients_too(tokens):
    def run(model, keep):
        return jax.jit(jax.value_and_grad(lambda k: jnp.square(model(tokens, keep=k)[:, -1]).mean()))(keep)

    keep = jnp.full((B, T), 0.7)
    (exact, slope), (low, low_slope) = run(build(), keep), run(build(dtype="bfloat16"), keep)
    np.testing.assert_allclose(low, exact, rtol=0.1)
    cosine = jnp.vdot(slope, low_slope) / jnp.linalg.norm(slope) / jnp.linalg.norm(low_slope)
    assert cosine > 0.98


@pytest.mark.parametrize("rows", [1, 5])
def test_low_precision_products_round_only_their_operands(rows):
    """Forward and both gradients equal float32 products of the rounded operands; one row takes another way."""
    x, w = jax.random.normal(jax.random.key(0), (rows, 8)), jax.random.normal(jax.random.key(1), (8, 6))
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, w)]
    for product, weight, axis in ((linear, w, 0), (tied_linear, w.T, 1)):
        out, vjp = jax.vjp(lambda x, w, f=product: f(x, w, jnp.bfloat16), x, weight)
        np.testing.assert_allclose(out, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
        to_x, to_w = vjp(jnp.ones_like(out))
        np.testing.assert_allclose(to_x, jnp.ones_like(out) @ rounded[1].T, rtol=1e-5, atol=1e-5)
        expected = rounded[0].T @ jnp.ones_like(out)
        np.testing.assert_allclose(to_w, expected if axis == 0 else expected.T, rtol=1e-5, atol=1e-5)


def test_split_merge_grad_and_pmap_over_a_plain_tree(tokens):
    model = build(param_dtype="float32", remat=True)
    graph, params = nnx.split(model)
    plain = nnx.to_pure_dict(params)
    shapes = jax.tree.map(jnp.shape, plain)
    assert shapes == parameter_shapes(CONFIG)

    def loss(params, tokens):
        return jnp.square(nnx.merge(graph, params)(tokens)).mean()

    single = jax.jit(jax.grad(loss))(plain, tokens)
    assert all(jnp.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(single))
    mapped = jax.pmap(lambda t: jax.lax.pmean(jax.grad(loss)(plain, t), "d"), axis_name="d")(tokens[:, None])
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_allclose(a, b[0], atol=1e-5)


def test_stacked_bfloat16_parameters_get_their_gradient(tokens):
    """The way around XLA's slow bfloat16 slices (`rcp.nn.stacked`) must not lose it."""
    graph, params = nnx.split(build(dtype="bfloat16", scale=1.0))
    gradients = jax.jit(jax.grad(lambda p: jnp.square(nnx.merge(graph, p)(tokens)).mean()))(params)
    assert all((g != 0).any() for g in jax.tree.leaves(gradients))
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}


def test_a_cache_refuses_what_it_cannot_hold(model, tokens):
    with pytest.raises(ValueError, match="per-layer keep"):
        model(tokens, keep=jnp.ones((2, B, T)), cache=model.new_cache(B, T))
    with pytest.raises(ValueError, match="start and stop"):
        model.hidden(tokens, stop=1, cache=model.new_cache(B, T))
    with pytest.raises(ValueError, match="multiple of n_kv_heads"):
        replace(CONFIG, n_kv_heads=3)
    with pytest.raises(ValueError, match="either valid or lengths"):
        model(tokens, valid=jnp.ones((B, T), bool), lengths=jnp.full(B, T))


def test_parameters_of_another_architecture_are_refused():
    other = nnx.to_pure_dict(nnx.split(build(replace(CONFIG, d_ff=40)))[1])
    with pytest.raises(ValueError, match="the configuration asks for"):
        Transformer(CONFIG, params=other)
