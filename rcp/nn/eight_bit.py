"""Products with matrices that are kept in 8 bits, a quarter of the bytes of float32 to read.

A CPU multiplies int8 by int8 into int32 about as fast as it reads them, and slowly a matrix that has to be converted
first. So there the other operand is written as int8 numbers too, x = s (a + b / 254 + c / 254^2), and the products are
added. Three numbers lose nothing that float32 holds beside the largest of a row of x; two lose at most 2^-16 of that,
256 times less than is rounded off the matrix. On accelerators the matrix is converted as it is read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

LARGEST = 127
STEP = 2 * LARGEST  # of a number to the next: what rounding leaves is at most half a unit
LONGEST = (2**31 - 1) // LARGEST**2
"""Sums of so many products are below 2^31."""


class EightBit(NamedTuple):
    """A matrix of `inputs` x `outputs`, a row an output: scale * values."""

    values: Int[Array, "outputs inputs"]
    scale: Float[Array, " outputs"]


def rounded(x: Float[Array, "*batch n"]) -> tuple[Int[Array, "*batch n"], Float[Array, "*batch"]]:
    """As int8 with a scale over the last axis, whose largest number is 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-8) / LARGEST
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def eight_bit(weight: Float[Array, "outputs inputs"]) -> EightBit:
    """The matrix rounded, an output at a time: a weight is off by half of its output's scale at most."""
    return EightBit(*rounded(weight))


def linear_8bit(x: Float[Array, "*batch inputs"], weight: EightBit, dtype: jnp.dtype) -> Float[Array, "*batch outputs"]:
    """As `rcp.nn.layers.linear`, x in two numbers."""
    rows = x.reshape(1, -1, x.shape[-1])
    product = product_8bit(rows.astype(dtype), weight.values[None], inner=2, numbers=2)
    return (product[0] * weight.scale[None]).reshape(*x.shape[:-1], -1)


def product_8bit(
    x: Float[Array, "rows n inner"], y: Int[Array, "rows _ _"], *, inner: int, numbers: int = 3
) -> Float[Array, "rows n outer"]:
    """x y for int8 `y`, whose axis `inner`, 1 or 2, is the one summed over. `numbers`: 2 or more, see the module."""
    axes = (((2,), (inner,)), ((0,), (0,)))
    if jax.default_backend() != "cpu" or y.shape[inner] > LONGEST:
        return lax.dot_general(x, y.astype(x.dtype), axes, preferred_element_type=jnp.float32)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30) / LARGEST
    rest, parts = x / scale, []
    for _ in range(numbers):
        parts.append(jnp.round(rest))
        rest = (rest - parts[-1]) * STEP
    whole = jnp.concatenate(parts, axis=1).astype(jnp.int8)
    found = lax.dot_general(whole, y, axes, preferred_element_type=jnp.int32).astype(jnp.float32)
    total = 0.0
    for product in reversed(jnp.split(found, numbers, axis=1)):
        total = product + total / STEP
    return scale * total
