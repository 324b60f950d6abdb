"""From a rate to a count."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MILLION = 10**6


def count_of_rate(total: Int[Array, "*batch"], rate: Float[Array, "*batch"] | float) -> Int[Array, "*batch"]:
    """max(1, floor(rate * total)), int32; 0 of 0. `rate` in (0, 1], a scalar or one an example, may be traced.

    A rate of up to six decimals is taken as it is written, and the count is exact for any total. Of other rates float32
    keeps seven digits: the factor keeps a product that is whole in exact arithmetic (1/3 of 25,701) from falling below
    it, and a product less than about 4e-7 of itself below a whole number counts as that. The 1e-4 is for rates that are
    meant as fewer decimals than they have.
    """
    rate = jnp.asarray(rate, jnp.float32)
    millionths = jnp.round(rate * MILLION)
    written = jnp.abs(rate * MILLION - millionths) <= 2**-23 * millionths  # float32 holds no other such rate
    exact = floor_of_share(total, millionths.astype(jnp.int32), MILLION, more=MILLION // 10_000)
    near = jnp.floor(rate * total.astype(jnp.float32) * (1 + 2**-22) + 1e-4).astype(jnp.int32)
    return jnp.clip(jnp.where(written, exact, near), jnp.minimum(1, total), total)


def floor_of_share(
    total: Int[Array, "*batch"], part: Int[Array, "*batch"], whole: Int[Array, "*batch"] | int, more: int = 0
) -> Int[Array, "*batch"]:
    """floor((total * part + more) / whole), int32, exact where the product is above 2^31: by long division.

    `total` is 0 or more; `part` and `more` 0 to `whole`; `whole` 1 to 2^22 - 1.
    """
    quotient, rest = jnp.int32(0), jnp.int32(0)
    for shift in (24, 16, 8, 0):  # a digit of `total` at a time: rest * 256 + part * 255 is below 2^31
        rest = rest * 256 + part * ((total >> shift) & 255) + (more if shift == 0 else 0)
        quotient, rest = quotient * 256 + rest // whole, rest % whole
    return quotient
