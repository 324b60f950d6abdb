"""Order statistics in log space: exact descending order, inverse permutation, cumulative logsumexp, Gumbel noise.

These are the only loops over tokens that a sampler needs, and they are written for speed on a CPU: XLA sorts a single
array of unsigned integers about five times faster than floats or (key, payload) pairs, and its associative-scan
`cumlogsumexp` is some thirty times slower than the two-level scan below.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

# Stands for log(0) inside the arithmetic. Finite, so that differences and gradients of excluded entries are never NaN;
# far below any logit (those are clipped to +-1e29), so that exp(LOG_ZERO - logit) is exactly 0.
LOG_ZERO = np.float32(-1e30)

_HALF_BITS = 16
_HALF_MASK = np.uint32(0xFFFF)


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform float32 numbers, `(m + 1/2) / 2^31` rounded to float32, in (0, 1].

    Unlike `jax.random.uniform` (a grid of 2^-23) the small numbers keep full relative precision, so that rare events
    have their right frequency down to 2^-32.
    """
    bits = lax.shift_right_logical(jax.random.bits(key, shape, jnp.uint32), jnp.uint32(1))
    return (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * np.float32(2.0**-31)


def gumbel_noise(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent standard Gumbel noise, float32, between about -3 and 22.

    `-log(-log1p(-u))` puts the finely resolved end of `u` into the upper tail, which is the one that decides the top k;
    the missing lower tail has mass 2^-24. `jax.random.gumbel` does the reverse and cuts the upper tail at 16.6.
    """
    complement = jnp.minimum(uniform(key, shape), np.float32(1 - 2.0**-24))
    return -jnp.log(-jnp.log1p(-complement))


def descending_image(
    values: Float[Array, "*batch tokens"],
    first: Bool[Array, "*batch tokens"],
    last: Bool[Array, "*batch tokens"],
) -> UInt32[Array, "*batch tokens"]:
    """Unsigned integers whose ascending order is the descending order of float32 `values`; `first` and `last` at the
    ends."""
    values = jnp.where(values == 0, np.float32(0), values)  # -0.0 and 0.0 tie
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    sign = np.uint32(1 << 31)
    ascending = jnp.where(bits >= sign, ~bits, bits | sign)
    image = jnp.where(first, np.uint32(0), ~ascending)
    return jnp.where(last, np.uint32(0xFFFFFFFF), image)


def stable_argsort(image: UInt32[Array, "*batch tokens"]) -> Int[Array, "*batch tokens"]:
    """Stable ascending argsort of 32-bit keys over the last axis.

    Up to 65,536 tokens a radix sort of two digits: each pass sorts `digit << 16 | position`, one plain integer array
    without ties. Both passes together take less than XLA's sort of (key, index) pairs.
    """
    axis = image.ndim - 1
    count = image.shape[axis]
    if count > 1 << _HALF_BITS:
        position = lax.broadcasted_iota(jnp.int32, image.shape, axis)
        return lax.sort((image, position), dimension=axis, is_stable=True, num_keys=1)[1]
    position = lax.broadcasted_iota(jnp.uint32, image.shape, axis)
    by_low = _sort_digit(image & _HALF_MASK, position)
    high = gather(lax.shift_right_logical(image, jnp.uint32(_HALF_BITS)), by_low)
    return gather(by_low, _sort_digit(high, position))


def _sort_digit(digit: UInt32[Array, "..."], position: UInt32[Array, "..."]) -> Int[Array, "..."]:
    packed = lax.shift_left(digit, jnp.uint32(_HALF_BITS)) | position
    return (lax.sort(packed, dimension=packed.ndim - 1, is_stable=False) & _HALF_MASK).astype(jnp.int32)


def gather(values: Array, index: Int[Array, "*batch tokens"]) -> Array:
    """`values[..., index]` row by row; the index is trusted to be in bounds."""
    return jnp.take_along_axis(values, index, axis=-1, mode="promise_in_bounds")


def inverse_permutation(order: Int[Array, "*batch tokens"]) -> Int[Array, "*batch tokens"]:
    """The permutation that undoes `order`: from 'which item is at place i' to 'at which place is item j', or back."""
    count = order.shape[-1]
    flat = order.reshape((-1, count))
    row = lax.broadcasted_iota(jnp.int32, flat.shape, 0)
    place = lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    inverse = jnp.zeros_like(place).at[row, flat].set(place, unique_indices=True, mode="promise_in_bounds")
    return inverse.reshape(order.shape)


def _inclusive(total: Array, value: Array) -> tuple[Array, Array]:
    total = jnp.logaddexp(total, value)
    return total, total


def _exclusive(total: Array, value: Array) -> tuple[Array, Array]:
    return jnp.logaddexp(total, value), total


def cumulative_logsumexp(
    values: Float[Array, "*batch tokens"], *, reverse: bool = False
) -> Float[Array, "*batch tokens"]:
    """log of the cumulative sum of exp over the last axis, exact at any range of values.

    Two levels: sequential within about sqrt(tokens) blocks side by side, then over the blocks' totals. No step
    subtracts a common maximum, so a tail hundreds of nats below the head keeps its precision.
    """
    *batch, count = values.shape
    if count == 0:
        return values
    block = 1 << ((count - 1).bit_length() + 1) // 2
    blocks = -(-count // block)
    pad = blocks * block - count
    if pad:
        edge = (pad, 0) if reverse else (0, pad)
        values = jnp.pad(values, [(0, 0)] * len(batch) + [edge], constant_values=LOG_ZERO)
    grid = jnp.moveaxis(values.reshape((*batch, blocks, block)), -1, 0)  # [block, *batch, blocks]

    within = lax.scan(_inclusive, jnp.full_like(grid[0], LOG_ZERO), grid, reverse=reverse)[1]
    totals = jnp.moveaxis(within[0 if reverse else -1], -1, 0)  # [blocks, *batch]
    before = lax.scan(_exclusive, jnp.full_like(totals[0], LOG_ZERO), totals, reverse=reverse)[1]
    result = jnp.logaddexp(within, jnp.moveaxis(before, 0, -1)[None])
    result = jnp.moveaxis(result, 0, -1).reshape((*batch, blocks * block))
    return result[..., pad:] if reverse else result[..., :count]
