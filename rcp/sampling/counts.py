"""From a rate to a count."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def count_of_rate(total: Int[Array, "*batch"], rate: Float[Array, "*batch"] | float) -> Int[Array, "*batch"]:
    """max(1, floor(rate * total)), int32; 0 of 0. `rate` in (0, 1], a scalar or one an example, may be traced.

    The factor and the 1e-4 keep a product that is whole in exact arithmetic (0.29 * 100, 0.13 * 25,700) from falling
    below it in float32.
    """
    product = jnp.asarray(rate, jnp.float32) * total.astype(jnp.float32)
    count = jnp.floor(product * (1 + 2**-22) + 1e-4).astype(jnp.int32)
    return jnp.clip(count, jnp.minimum(1, total), total)
