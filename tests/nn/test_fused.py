"""The code around the kernels of accelerators, on CPU: against the blocked attention, at all that is not padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from rcp.nn import attention as room
from rcp.nn import fused
from rcp.nn.attention import attention
from rcp.nn.fused import fused_attention, implementation_for
from rcp.nn.parameters import TransformerConfig
from rcp.nn.transformer import Transformer

B, T, H, KV, D = 3, 12, 6, 2, 64
LENGTHS = jnp.array([T, 5, 0])
REAL = np.arange(T)[None] < np.asarray(LENGTHS)[:, None]


def operands(tokens=T, dtype=jnp.float32, batch=B):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (batch, tokens, h, D)).astype(dtype) for k, h in zip(keys, (H, KV, KV), strict=True)]


def test_it_equals_the_blocked_attention_at_real_tokens():
    """Grouped queries, a row that is all padding, and gradients: nothing flows to or from padding."""

    def values(attend):
        def loss(q, k, v):
            out = attend(q, k, v)
            return jnp.sum(jnp.square(jnp.where(REAL[..., None, None], out, 0.0))), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*operands())

    (_, found), slopes = values(lambda q, k, v: fused_attention(q, k, v, LENGTHS, "xla"))
    (_, expected), expected_slopes = values(lambda q, k, v: attention(q, k, v, lengths=LENGTHS))
    np.testing.assert_allclose(found[REAL], expected[REAL], atol=2e-6)
    assert not np.any(found[~REAL])
    for x, y in zip(slopes, expected_slopes):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
        assert not np.any(x[~REAL])


def test_without_padding_no_lengths_are_needed():
    q, k, v = operands()
    np.testing.assert_allclose(fused_attention(q, k, v, None, "xla"), attention(q, k, v), atol=2e-6)


def test_the_pallas_kernel_interpreted_equals_the_blocked_attention():
    q, k, v = operands(128, batch=1)
    lengths = jnp.array([100])
    with pltpu.force_tpu_interpret_mode():
        found = fused_attention(q, k, v, lengths, "pallas")
    np.testing.assert_allclose(found[:, :100], attention(q, k, v, lengths=lengths)[:, :100], atol=1e-5)
    assert not np.any(found[:, 100:])


@pytest.mark.parametrize(
    ("backend", "dtype", "dim", "tokens", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, 100, "cudnn"),
        ("gpu", jnp.float16, 128, 100, "cudnn"),
        ("gpu", jnp.float32, 64, 100, None),
        ("gpu", jnp.bfloat16, 80, 100, None),
        ("tpu", jnp.bfloat16, 64, 256, "pallas"),
        ("tpu", jnp.bfloat16, 64, 100, None),
        ("cpu", jnp.bfloat16, 64, 256, None),
    ],
)
def test_where_there_is_a_kernel(monkeypatch, backend, dtype, dim, tokens, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert implementation_for(jax.ShapeDtypeStruct((2, tokens, 4, dim), dtype)) == expected


def test_a_compiler_that_splits_over_devices_gets_no_pallas_call(monkeypatch):
    """Under `pmap` each device traces its own part; over a mesh the compiler would have to split the call."""
    seen = []
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 8)

    def trace(q):
        seen.append(implementation_for(q))
        return q

    jax.eval_shape(trace, jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16))
    jax.eval_shape(jax.pmap(trace, axis_name="d"), jax.ShapeDtypeStruct((1, 2, 128, 4, 64), jnp.bfloat16))
    assert seen == [None, "pallas"]


def test_reading_uses_it_and_masks_and_caches_do_not(monkeypatch):
    """`Transformer.hidden` with lengths takes the kernel where there is one, and the logits are the same."""
    config = TransformerConfig(vocab_size=24, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=64, d_ff=24)
    model = Transformer(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, 24, jnp.int32)
    expected = model.hidden(tokens, lengths=LENGTHS)
    calls = []

    def attend(q, k, v, lengths, implementation):
        calls.append(implementation)
        return fused.fused_attention(q, k, v, lengths, "xla")

    monkeypatch.setattr(room, "implementation_for", lambda q: "cudnn")
    monkeypatch.setattr(room, "fused_attention", attend)
    np.testing.assert_allclose(model.hidden(tokens, lengths=LENGTHS)[REAL], expected[REAL], atol=1e-5)
    assert calls == ["cudnn"]
    model.hidden(tokens, lengths=LENGTHS, keep=jnp.ones((B, T)))
    model.hidden(tokens, valid=jnp.asarray(REAL))
    model.hidden(tokens, lengths=LENGTHS, cache=model.new_cache(B, T))
    assert calls == ["cudnn"]
