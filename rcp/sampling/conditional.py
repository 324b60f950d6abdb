"""Conditional Bernoulli: independent Bernoulli draws given that exactly k succeed (SIMPLE, Ahmed et al., arXiv
2210.01941).

p(S) is proportional to exp(sum of the logits in S) over the sets of size k. For k > 1 this is *not* the distribution of
Gumbel top-k (`rcp.sampling.gumbel`); pair each log-probability and each marginal with its own sampler.

All functions rest on one recursion. With e_j the elementary symmetric polynomials of exp(phi) over the first i tokens
and rho_j = log(e_j / e_{j-1}), adding a token with logit phi gives

    rho_j' = logaddexp(rho_j, phi) - softplus(phi - rho_{j-1}),

and, going backwards from j still to be kept, the token is kept with probability sigmoid(phi - rho_j). The ratios stay
of the size of the logits where log e_j itself grows to thousands and loses its digits in float32. Time and memory are
O(tokens * k) for each example: for long contexts use Gumbel top-k.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.sampling.order import LOG_ZERO, uniform
from rcp.sampling.relaxed import static_bound
from rcp.sampling.subset import Split, Subset, centred, forced_mask, is_possible, rank_by_index, split


def marginals(
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    max_k: int | None = None,
) -> Float[Array, "*batch tokens"]:
    """Conditional Bernoulli: the probability of each token to be kept. Sums to min(k, tokens that may be kept).

    Args:
      logits: [*batch, tokens]. `+inf` entries give exactly 1 (the first k of them where there are more), `-inf`
        exactly 0.
      k: an int, or a traced integer scalar or [*batch] array.
      valid: tokens that may be kept; all where None.
      max_k: static bound for a traced k, `tokens` where None. NaN where more than max_k ordinary tokens are to be kept.

    Returns:
      float32 [*batch, tokens]. Differentiable (reverse mode): the Jacobian is the covariance of the sample.
    """
    parts, bound = _prepare(logits, k, valid, max_k)
    return _all_marginals(parts, bound)


@partial(jax.jit, static_argnums=1)
def _all_marginals(parts: Split, bound: int) -> Array:
    inner = _marginals(centred(parts), parts.ordinary, parts.free, bound)
    inner = jnp.where((parts.free > bound)[..., None], jnp.nan, inner)
    return jnp.where(parts.ordinary, inner, forced_mask(parts).astype(jnp.float32))


def conditional_bernoulli(
    key: Array,
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    max_k: int | None = None,
) -> Subset:
    """Conditional Bernoulli: an exact sample of k tokens.

    Arguments as in `marginals` and `gumbel_top_k`.

    Returns:
      Subset. `log_prob` is of the set, under the conditional Bernoulli. The draw has no order: `rank` lists the kept
      tokens by index, then the others by index, and must not be given to the Plackett-Luce `log_prob`.
    """
    parts, bound = _prepare(logits, k, valid, max_k)
    return _sample(key, parts, bound)


@partial(jax.jit, static_argnums=2)
def _sample(key: Array, parts: Split, bound: int) -> Subset:
    values, ordinary = lax.stop_gradient(jnp.moveaxis(centred(parts), -1, 0)), jnp.moveaxis(parts.ordinary, -1, 0)
    table, _ = _ratios(values, ordinary, bound)

    def decide(left: Array, token: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        logit, may, ratios, noise = token
        ratio = jnp.take_along_axis(ratios, jnp.maximum(left - 1, 0)[..., None], axis=-1)[..., 0]
        taken = may & (left > 0) & (noise <= jax.nn.sigmoid(logit - ratio))
        return left - taken.astype(jnp.int32), taken

    noise = uniform(key, values.shape)
    drawn = lax.scan(decide, jnp.minimum(parts.free, bound), (values, ordinary, table, noise), reverse=True)[1]
    mask = jnp.moveaxis(drawn, 0, -1) | forced_mask(parts)
    log_p = jnp.where(parts.free > bound, jnp.nan, _set_log_prob(parts, mask, bound))
    return Subset(mask, rank_by_index(mask), log_p)


def conditional_bernoulli_log_prob(
    logits: Float[Array, "*batch tokens"],
    mask: Bool[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    max_k: int | None = None,
) -> Float[Array, " *batch"]:
    """Conditional Bernoulli: log-probability of the set `mask` among all sets of its size.

    Returns:
      float32 [*batch], differentiable in the logits (mask less marginals); `-inf` for a set that cannot be drawn.
    """
    parts, bound = _prepare(logits, None, valid, max_k)
    mask = jnp.asarray(mask)
    if mask.shape != parts.values.shape:
        raise ValueError(f"mask must have the shape of the logits {parts.values.shape}, not {mask.shape}")
    return _set_log_prob(parts, mask, bound)


@partial(jax.jit, static_argnums=2)
def _set_log_prob(parts: Split, mask: Array, bound: int) -> Array:
    free = jnp.sum(mask & parts.ordinary, axis=-1, dtype=jnp.int32)
    values = centred(parts)
    value = jnp.sum(jnp.where(mask, values, np.float32(0)), axis=-1)
    value = value - _log_normalizer(values, parts.ordinary, free, bound)
    return jnp.where(is_possible(mask, parts), jnp.where(free > bound, jnp.nan, value), -jnp.inf)


def conditional_bernoulli_entropy(
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
    max_k: int | None = None,
) -> Float[Array, " *batch"]:
    """Conditional Bernoulli: exact entropy in nats, the log-normaliser less the mean sum of logits; as `marginals`."""
    parts, bound = _prepare(logits, k, valid, max_k)
    return _entropy(parts, bound)


@partial(jax.jit, static_argnums=1)
def _entropy(parts: Split, bound: int) -> Array:
    values = centred(parts)
    normalizer = _log_normalizer(values, parts.ordinary, parts.free, bound)
    mean = jnp.sum(_marginals(values, parts.ordinary, parts.free, bound) * values, axis=-1)
    return jnp.where(parts.free > bound, jnp.nan, normalizer - mean)


def _prepare(logits: Array, k: Any, valid: Array | None, max_k: int | None) -> tuple[Split, int]:
    parts = split(logits, k, valid)
    return parts, static_bound(k, parts.values.shape[-1], max_k)


def _ratios(values: Array, ordinary: Array, bound: int) -> tuple[Array, Array]:
    """rho_1 .. rho_bound before each token [tokens, *batch, bound], and after the last; LOG_ZERO where e_j is 0."""

    def add(ratios: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
        logit, may = (column[..., None] for column in token)
        gain = jax.nn.softplus(logit - ratios)  # log(1 + exp(phi) / (e_j / e_{j-1}))
        sums = jnp.where(ratios > LOG_ZERO / 2, jnp.logaddexp(ratios, logit), logit)  # `ratios + gain` loses digits
        before = jnp.concatenate([jnp.zeros_like(gain[..., :1]), gain[..., :-1]], axis=-1)
        return jnp.where(may, sums - before, ratios), ratios

    start = jnp.full_like(values[0][..., None], LOG_ZERO)
    start = jnp.broadcast_to(start, (*start.shape[:-1], bound))
    last, table = lax.scan(add, start, (values, ordinary))
    return table, last


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _custom_marginals(values: Array, ordinary: Array, free: Array, bound: int) -> Array:
    return _backward_pass(values, ordinary, free, bound)


def _marginals_fwd(values: Array, ordinary: Array, free: Array, bound: int):
    return _backward_pass(values, ordinary, free, bound), (values, ordinary, free)


def _marginals_bwd(bound: int, residuals, cotangent: Array):
    # The Jacobian is a covariance matrix, hence symmetric: the cheap forward mode gives the product of the reverse
    # mode.
    values, ordinary, free = residuals
    tangent = jnp.where(ordinary, cotangent, np.float32(0))
    return jax.jvp(lambda v: _backward_pass(v, ordinary, free, bound), (values,), (tangent,))[1], None, None


_custom_marginals.defvjp(_marginals_fwd, _marginals_bwd)


def _marginals(values: Array, ordinary: Array, free: Array, bound: int) -> Array:
    return jnp.asarray(_custom_marginals(values, ordinary, free, bound))


def _backward_pass(values: Array, ordinary: Array, free: Array, bound: int) -> Array:
    """Carries the distribution of the number still to be kept from the last token to the first."""
    values, ordinary = jnp.moveaxis(values, -1, 0), jnp.moveaxis(ordinary, -1, 0)
    table, _ = _ratios(values, ordinary, bound)

    def remove(left: Array, token: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        logit, may, ratios = token
        log_odds = jnp.where(may[..., None], logit[..., None] - ratios, LOG_ZERO)
        taken = left[..., 1:] * jax.nn.sigmoid(log_odds)
        stays = left[..., 1:] * jax.nn.sigmoid(-log_odds)
        none = jnp.zeros_like(left[..., :1])
        return jnp.concatenate([left[..., :1], stays], -1) + jnp.concatenate([taken, none], -1), jnp.sum(taken, -1)

    states = jnp.arange(bound + 1, dtype=jnp.int32).reshape((1,) * free.ndim + (bound + 1,))
    start = (states == jnp.minimum(free, bound)[..., None]).astype(jnp.float32)
    return jnp.moveaxis(lax.scan(remove, start, (values, ordinary, table), reverse=True)[1], 0, -1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_normalizer(values: Array, ordinary: Array, free: Array, bound: int) -> Array:
    """log of the sum over the sets of `free` ordinary tokens of exp(sum of their logits); its gradient is the
    marginals."""
    _, ratios = _ratios(jnp.moveaxis(values, -1, 0), jnp.moveaxis(ordinary, -1, 0), bound)
    counted = jnp.arange(bound, dtype=jnp.int32).reshape((1,) * free.ndim + (bound,)) < free[..., None]
    return jnp.sum(jnp.where(counted, ratios, np.float32(0)), axis=-1)


@_log_normalizer.defjvp
def _log_normalizer_jvp(bound: int, primals, tangents):
    values, ordinary, free = primals
    slope = jnp.where(ordinary, _marginals(values, ordinary, free, bound), np.float32(0))
    return _log_normalizer(values, ordinary, free, bound), jnp.sum(slope * tangents[0], axis=-1)
