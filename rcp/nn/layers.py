"""The pieces every decoder layer is made of: projections, RMSNorm, SwiGLU, rotary embedding. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from rcp.nn.eight_bit import EightBit, linear_8bit
from rcp.nn.stacked import Sliced, from_slice


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of rotary frequencies for long contexts ("The Llama 3 Herd of Models", arXiv:2407.21783).

    Wavelengths longer than `original_max_positions / low_freq_factor` are stretched by `factor`, those shorter than
    `original_max_positions / high_freq_factor` are left alone, and the ones between are interpolated.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, " half"]:
    """Angular frequencies `theta ** (-2 i / head_dim)`, radians per position, i < head_dim / 2 (arXiv:2104.09864)."""
    frequency = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (scaling.original_max_positions / wavelength - low) / (high - low)
    blend = jnp.clip(blend, 0.0, 1.0)  # 0: stretched, 1: untouched
    return (1 - blend) * frequency / scaling.factor + blend * frequency


def rope_tables(
    positions: Int[Array, "batch tokens"], frequencies: Float[Array, " half"]
) -> tuple[Float[Array, "batch tokens 1 half"], Float[Array, "batch tokens 1 half"]]:
    """Cosine and sine of position times frequency, in float32 (bfloat16 cannot tell neighbouring positions apart)."""
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "batch tokens heads dim"],
    cos: Float[Array, "batch tokens 1 half"],
    sin: Float[Array, "batch tokens 1 half"],
) -> Float[Array, "batch tokens heads dim"]:
    """Rotary embedding in the half-rotation layout: dimension i is paired with i + dim / 2."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Float[Array, "*batch dim"], scale: Float[Array, " dim"], eps: float) -> Float[Array, "*batch dim"]:
    """`scale * x / sqrt(mean(x^2) + eps)` over the last axis in float32 (arXiv:1910.07467)."""
    x = x.astype(jnp.float32)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale


class LowRank(NamedTuple):
    """A matrix and a low-rank update of it: weight + a b (see `rcp.nn.lora`)."""

    weight: Any
    a: Any
    b: Any


def linear(
    x: Float[Array, "*batch inputs"],
    weight: Float[Array, "inputs outputs"] | Sliced | LowRank | EightBit,
    dtype: jnp.dtype,
) -> Float[Array, "*batch outputs"]:
    """`x @ weight` with operands in `dtype` and the product accumulated and returned in float32.

    Rounding the operands and not the product makes bfloat16 fast on CPU (a bfloat16 result is computed no faster than
    float32 there) and is the accurate choice everywhere. The same holds for both gradients, hence the custom rule. What
    a low-rank update adds is float32 throughout.
    """
    if isinstance(weight, EightBit):
        return linear_8bit(x, weight, dtype)
    if isinstance(weight, LowRank):
        update = _contract(_contract(x.astype(jnp.float32), weight.a, 0), weight.b, 0)
        return linear(x, weight.weight, dtype) + update
    if dtype == jnp.float32:
        return _contract(x, from_slice(weight).astype(jnp.float32), 0)
    value, bits = weight if isinstance(weight, Sliced) else (weight, None)
    return _low_precision_dot(x, value, bits, jnp.dtype(dtype), 0)


def tied_linear(
    x: Float[Array, "*batch inputs"], weight: Float[Array, "outputs inputs"], dtype: jnp.dtype
) -> Float[Array, "*batch outputs"]:
    """`x @ weight.T` as in `linear`, without a transposed copy of the weight (the embedding used as head)."""
    if dtype == jnp.float32:
        return _contract(x, weight.astype(jnp.float32), 1)
    return _low_precision_dot(x, weight, None, jnp.dtype(dtype), 1)


def _contract(x: Array, weight: Array, axis: int) -> Array:
    """Products of the last axis of x with an axis of a matrix, accumulated in float32."""
    return lax.dot_general(x, weight, (((x.ndim - 1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _low_precision_dot(x, weight, bits, dtype, axis):
    """Reads the weight from its bits, where given (see `rcp.nn.stacked`), and gives it the gradient."""
    x, weight = x.astype(dtype), _read(weight, bits).astype(dtype)
    if x.size == x.shape[-1] and jax.default_backend() == "cpu":
        # XLA's bfloat16 matrix-vector product on CPU goes element by element; that of the same row twice does not.
        twice = jnp.broadcast_to(x.reshape(1, -1), (2, x.shape[-1]))
        return _contract(twice, weight, axis)[:1].reshape(*x.shape[:-1], -1)
    return _contract(x, weight, axis)


def _read(weight, bits):
    return weight if bits is None else lax.bitcast_convert_type(bits, jnp.bfloat16)


def _low_precision_dot_forward(x, weight, bits, dtype, axis):
    # Of the weight the bits are kept: a scan hands them to its backward pass as they came, but would stack a copy of
    # anything computed from them. The input's dtype is carried by an empty array.
    saved = (x.astype(dtype), weight if bits is None else None, bits, jnp.zeros((0,), x.dtype))
    return _low_precision_dot(x, weight, bits, dtype, axis), saved


def _low_precision_dot_backward(dtype, axis, saved, gradient):
    low, weight, bits, like = saved
    weight = _read(weight, bits)
    gradient = gradient.astype(dtype)
    to_input = _contract(gradient, weight.astype(dtype), 1 - axis)
    rows = tuple(range(low.ndim - 1))
    pair = (low, gradient) if axis == 0 else (gradient, low)
    to_weight = lax.dot_general(*pair, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return to_input.astype(like.dtype), to_weight.astype(weight.dtype), None


_low_precision_dot.defvjp(_low_precision_dot_forward, _low_precision_dot_backward)


def swiglu(
    x: Float[Array, "*batch dim"],
    gate: Float[Array, "dim ffn"] | Sliced | LowRank,
    up: Float[Array, "dim ffn"] | Sliced | LowRank,
    down: Float[Array, "ffn dim"] | Sliced | LowRank,
    dtype: jnp.dtype,
) -> Float[Array, "*batch dim"]:
    """`(silu(x gate) * (x up)) down` (arXiv:2002.05202)."""
    return linear(jax.nn.silu(linear(x, gate, dtype)) * linear(x, up, dtype), down, dtype)
