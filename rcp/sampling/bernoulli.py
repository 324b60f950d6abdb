"""Independent Bernoulli decisions: each token is kept with probability sigmoid(logit), whatever the others do.

A softmax over (keep, drop) is a sigmoid of the difference of its logits, so this is how CoT-Influx samples (arXiv
2312.08901). Nothing fixes the count: what is kept has its size on average only. `at_least_one` conditions the draw on
keeping one or more of the ordinary tokens, which is what drawing again until one is kept gives. With q the probability
of keeping none,

    p(S | S not empty) = p(S) / (1 - q),   q = prod_i (1 - sigmoid(phi_i)).

Drawing again and then using p(S), as if the first draw had been taken, biases the score function.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from rcp.sampling.order import LOG_ZERO, gumbel_noise, uniform
from rcp.sampling.subset import Split, Subset, rank_by_index, split

_SMALL = 1e-3  # below this, 1 - exp(-x) is taken from its series, whose logarithm does not underflow
_LOWEST = -60.0  # logits in the entropy of the conditional draw: quotients of probabilities below e^-60 are not taken


def bernoulli(
    key: Array,
    logits: Float[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    at_least_one: bool = False,
) -> Subset:
    """Independent draws; with `at_least_one`, exactly from their conditional distribution, without trying again.

    The first token that is kept is i with probability proportional to p_i prod_{j < i} (1 - p_j); those behind it are
    independent.

    Args:
      key: one random key for the whole batch (vmap over keys to give each example its own).
      logits: [*batch, tokens]; log-odds of keeping. `+inf` is always kept, `-inf` never.
      valid: tokens that may be kept; all where None.
      at_least_one: of the ordinary tokens, forced ones do not count. Where there is no ordinary token it says nothing.

    Returns:
      Subset of no fixed size. `log_prob` is of the set. The draw has no order: `rank` lists the kept tokens by index,
      then the others, and must not be given to the Plackett-Luce `log_prob`.
    """
    parts = split(logits, None, valid)
    return _subset(parts, _sample(key, parts, at_least_one), at_least_one)


def bernoulli_mode(
    logits: Float[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    at_least_one: bool = False,
) -> Subset:
    """The likeliest set, deterministic: tokens kept with a probability above 1/2, or else the likeliest one alone."""
    parts = split(logits, None, valid)
    return _subset(parts, _mode(parts, at_least_one), at_least_one)


def bernoulli_log_prob(
    logits: Float[Array, "*batch tokens"],
    mask: Bool[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    at_least_one: bool = False,
) -> Float[Array, " *batch"]:
    """Log-probability of the set `mask`, float32 [*batch], differentiable in the logits; `-inf` if it cannot be drawn.

    Arguments as in `bernoulli`.
    """
    parts, mask = split(logits, None, valid), jnp.asarray(mask)
    if mask.shape != parts.values.shape:
        raise ValueError(f"mask must have the shape of the logits {parts.values.shape}, not {mask.shape}")
    return _log_prob(parts, mask, at_least_one)


def bernoulli_entropy(
    logits: Float[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    at_least_one: bool = False,
) -> Float[Array, " *batch"]:
    """Exact entropy in nats: H = sum_i h(p_i), and (H + q log q) / (1 - q) + log(1 - q) given that one is kept."""
    return _entropy(split(logits, None, valid), at_least_one)


def _subset(parts: Split, mask: Array, at_least_one: bool) -> Subset:
    return Subset(mask, rank_by_index(mask), _log_prob(parts, mask, at_least_one))


@partial(jax.jit, static_argnums=2)
def _sample(key: Array, parts: Split, at_least_one: bool) -> Bool[Array, "*batch tokens"]:
    values, shape = lax.stop_gradient(parts.values), parts.values.shape
    first_key, other_key = jax.random.split(key)
    drawn = parts.ordinary & (uniform(other_key, shape) <= jax.nn.sigmoid(values))
    if at_least_one:
        dropped = jnp.where(parts.ordinary, jax.nn.log_sigmoid(-values), np.float32(0))
        before = jnp.cumsum(dropped, axis=-1) - dropped
        weight = jnp.maximum(jax.nn.log_sigmoid(values) + before, LOG_ZERO / 2)
        noisy = jnp.where(parts.ordinary, weight + gumbel_noise(first_key, shape), LOG_ZERO)
        place = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        first = jnp.argmax(noisy, axis=-1, keepdims=True).astype(jnp.int32)
        drawn = parts.ordinary & ((place == first) | ((place > first) & drawn))
    return drawn | parts.forced


@partial(jax.jit, static_argnums=1)
def _mode(parts: Split, at_least_one: bool) -> Bool[Array, "*batch tokens"]:
    likely = parts.ordinary & (parts.values > 0)
    if at_least_one:
        place = lax.broadcasted_iota(jnp.int32, likely.shape, likely.ndim - 1)
        best = jnp.argmax(jnp.where(parts.ordinary, parts.values, LOG_ZERO), axis=-1, keepdims=True)
        alone = parts.ordinary & (place == best.astype(jnp.int32))
        likely = jnp.where(jnp.any(likely, axis=-1, keepdims=True), likely, alone)
    return likely | parts.forced


@partial(jax.jit, static_argnums=2)
def _log_prob(parts: Split, mask: Array, at_least_one: bool) -> Float[Array, " *batch"]:
    signed = jnp.where(mask, parts.values, -parts.values)
    value = jnp.sum(jnp.where(parts.ordinary, jax.nn.log_sigmoid(signed), np.float32(0)), axis=-1)
    excluded = jnp.any(mask & ~parts.ordinary & ~parts.forced, axis=-1)
    impossible = excluded | jnp.any(parts.forced & ~mask, axis=-1)
    if at_least_one:
        value = jnp.minimum(value - _log_some(parts), np.float32(0))
        may = jnp.any(parts.ordinary, axis=-1)
        impossible |= may & ~jnp.any(mask & parts.ordinary, axis=-1)
    return jnp.where(impossible, -jnp.inf, value)


@partial(jax.jit, static_argnums=1)
def _entropy(parts: Split, at_least_one: bool) -> Float[Array, " *batch"]:
    values = jnp.maximum(parts.values, np.float32(_LOWEST)) if at_least_one else parts.values
    each = jax.nn.softplus(values) - values * jax.nn.sigmoid(values)
    total = jnp.sum(jnp.where(parts.ordinary, each, np.float32(0)), axis=-1)
    if not at_least_one:
        return total
    some = _log_some(parts._replace(values=values))
    none = -jnp.sum(jnp.where(parts.ordinary, jax.nn.softplus(values), np.float32(0)), axis=-1)
    return jnp.maximum((total + none * jnp.exp(none)) * jnp.exp(-some) + some, np.float32(0))


def _log_some(parts: Split) -> Float[Array, " *batch"]:
    """log(1 - q), the log-probability that an ordinary token is kept; 0 where there is none.

    With x = -log q = sum of softplus(phi): log(1 - e^-x) = log x - x/2 + x^2/24 - ..., and log x is a logsumexp of
    log softplus(phi), which is phi itself far below 0. So it stays exact where every probability underflows.
    """
    values, ordinary = parts.values, parts.ordinary
    gains = jax.nn.softplus(values)
    x = jnp.sum(jnp.where(ordinary, gains, np.float32(0)), axis=-1)
    small = values < -15.0
    log_gains = jnp.where(small, values, jnp.log(jnp.where(small, np.float32(1), gains)))
    log_x = jax.nn.logsumexp(jnp.where(ordinary, log_gains, LOG_ZERO), axis=-1)
    near = jnp.minimum(x, np.float32(_SMALL))
    series = log_x - near / 2 + jnp.square(near) / 24
    closed = jnp.log(-jnp.expm1(-jnp.maximum(x, np.float32(_SMALL))))
    some = jnp.where(x < _SMALL, series, closed)
    return jnp.where(jnp.any(ordinary, axis=-1), some, np.float32(0))
