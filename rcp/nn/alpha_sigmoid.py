"""The alpha-sigmoid: the probability that alpha-entmax gives to x beside 0 (Peters et al., arXiv 1905.05702).

    p = argmax over [0, 1] of  p x + H_alpha(p, 1 - p),    and for alpha > 1

    (p^(alpha - 1) - (1 - p)^(alpha - 1)) / (alpha - 1) = x     where |x| < 1 / (alpha - 1), else p is 0 or 1.

alpha = 1 is the logistic sigmoid, alpha = 2 is clip((1 + x) / 2, 0, 1); the larger alpha, the nearer it is to the step
function. As in dynamic context pruning (Anagnostidis et al., arXiv 2305.15805), where alpha grows in training.
Departure: their code bisects for the threshold of alpha-entmax over the pair (x, 0), from alpha = 1 + 1e-8 on. Here the
equation above, in which the threshold no longer occurs, is solved for the logarithm of the smaller probability by
Newton's method from a start that is nearly right: fewer rounds, and it holds for small p and at alpha = 1 too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ROUNDS = 6  # of Newton's method; 4 leave what float32 rounds away, for alpha up to 16
LOWEST = -87.0  # logarithm of about the smallest normal float32
HIGHEST = -0.6931472  # log 1/2


@jax.custom_vjp
def alpha_sigmoid(x: Float[Array, "*shape"], alpha: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """p in [0, 1], float32, exactly 0 and 1 beyond the support.

    The gradient is that of the implicit function, dp/dx = 1 / (p^(alpha - 2) + (1 - p)^(alpha - 2)) inside the support
    and 0 outside. There is none to alpha, which a schedule gives.

    Args:
      alpha: from 1 on; may be traced.
    """
    return _forward(x, alpha)[0]


def _forward(x: Array, alpha: Any) -> tuple[Array, tuple[Array, Array, Array]]:
    x = x.astype(jnp.float32)
    power = jnp.asarray(alpha, jnp.float32) - 1.0
    size = jnp.abs(x)
    inside = power * size < 1.0
    small = jnp.where(inside, _smaller(jnp.where(inside, size, 0.0), power), 0.0)
    return jnp.where(x > 0, 1.0 - small, small), (small, inside, power)


def _smaller(size: Array, power: Array) -> Array:
    """The smaller of p and 1 - p where |x| is `size`, for a power = alpha - 1 with power * size < 1."""
    a = jnp.maximum(power, 1e-6)  # below, float32 cannot tell the curve from the sigmoid's

    def above(t: Array) -> tuple[Array, Array]:
        """The equation's left side less its right side at p = e^t, and its derivative in t. Increasing."""
        p = jnp.exp(t)
        rest = jnp.log1p(-p)
        own, other = jnp.expm1(a * t), jnp.expm1(a * rest)
        return (own - other) / a + size, (own + 1.0) + (other + 1.0) * p / (1.0 - p)

    def newton(_: Any, t: Array) -> Array:
        value, slope = above(t)
        return jnp.clip(t - value / jnp.maximum(slope, 1e-37), LOWEST, HIGHEST)  # 0 at x = 0 for a large alpha

    # Where p is small (1 - p)^a is 1 - a p, and of p^a and a p the larger counts.
    rest = jnp.maximum(1.0 - a * size, 1e-37)
    start = jnp.where(a < 1, jnp.log(rest) / a, jnp.log(-jnp.expm1(jnp.log(jnp.maximum(a * size, 1e-37)) / a) + 1e-37))
    start = jnp.clip(start, LOWEST, HIGHEST)
    t = lax.fori_loop(0, ROUNDS, newton, start)
    return jnp.where(power > 1e-6, jnp.exp(t), jax.nn.sigmoid(-size))


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None]:
    small, inside, power = saved
    slope = 1.0 / (jnp.power(small, power - 1.0) + jnp.power(1.0 - small, power - 1.0))
    return jnp.where(inside, gradient * slope, 0.0), None


alpha_sigmoid.defvjp(_forward, _backward)
