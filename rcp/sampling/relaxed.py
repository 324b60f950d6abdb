"""Differentiable top-k: entries that sum to k instead of exactly k ones.

Neither function draws anything. On logits plus Gumbel noise they relax the Plackett-Luce sample of `gumbel_top_k`; on
the logits alone, the deterministic `top_k`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.sampling.subset import Split, forced_mask, split

_ROUNDS = 32  # bisection over the ordered integer image of float32: after 32 rounds the bracket is one float wide
_POLISH = 3
_OUT = np.float32(-3e38)  # stands for -inf as a logit; below any other (those are clipped to +-1e29)


def relaxed_top_k(
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    temperature: float | Float[Array, " *batch"],
    *,
    method: Literal["threshold", "successive"] = "threshold",
    valid: Bool[Array, "*batch tokens"] | None = None,
    max_k: int | None = None,
) -> Float[Array, "*batch tokens"]:
    """Relaxed top-k mask: non-negative entries that sum to k; close to the hard mask at a low temperature.

    "threshold": sigmoid((phi - t) / temperature) with the t at which the sum is k. Entries lie in [0, 1]. t is found by
    bisection and its gradient comes from the implicit function theorem, dt = sum_i w_i dphi_i with w the normalised
    sigmoid'((phi_i - t) / temperature). O(tokens) for any k.

    "successive": k softmaxes, each after removing what those before took (Xie & Ermon, arXiv 1901.10517). Entries may
    exceed 1. O(tokens * k).

    Args:
      logits: [*batch, tokens]. `+inf` entries are exactly 1 (the first k of them where there are more), `-inf`
        exactly 0.
      k: an int, or a traced integer scalar or [*batch] array.
      temperature: > 0, in units of the logits; a scalar or [*batch]; may be traced.
      method: see above.
      valid: tokens that may be kept; all where None.
      max_k: for "successive" with a traced k: a static bound, `tokens` where None. NaN where k exceeds it.

    Returns:
      float32 [*batch, tokens], summing to min(k, tokens that may be kept).

    Raises:
      ValueError: unknown method, temperature not positive; and see `rcp.sampling.subset.split`.
    """
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    parts = split(logits, k, valid)
    tau = jnp.asarray(temperature, jnp.float32)
    if method == "threshold":
        return _relax(parts, tau, None)
    if method == "successive":
        return _relax(parts, tau, static_bound(k, parts.values.shape[-1], max_k))
    raise ValueError(f"unknown method {method!r}; expected 'threshold' or 'successive'")


@partial(jax.jit, static_argnums=2)
def _relax(parts: Split, temperature: Array, steps: int | None) -> Array:
    """Successive softmax with that many steps, or the threshold where None."""
    tau = jnp.broadcast_to(jnp.maximum(temperature, np.float32(1e-8)), parts.kept.shape)[..., None]
    entries = _threshold_entries(parts, tau) if steps is None else _successive_entries(parts, tau, steps)
    return jnp.where(parts.ordinary, entries, forced_mask(parts).astype(jnp.float32))


def static_bound(k: int | Array, tokens: int, max_k: int | None) -> int:
    """The static number of steps for an algorithm that takes one for each of k: k itself, or max_k, or tokens."""
    bound = int(k) if isinstance(k, (int, np.integer)) else tokens if max_k is None else max_k
    return max(1, min(bound, tokens))


def straight_through(hard: Array, soft: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value of `hard`, bit for bit, with the gradient of `soft` (Bengio et al., arXiv 1308.3432)."""
    hard = lax.stop_gradient(jnp.asarray(hard).astype(soft.dtype))
    return hard + (soft - lax.stop_gradient(soft))


def _threshold_entries(parts: Split, tau: Array) -> Array:
    available = jnp.sum(parts.ordinary, axis=-1, dtype=jnp.int32)
    scaled = jnp.where(parts.ordinary, parts.values / tau, np.float32(0))
    inner = (parts.free > 0) & (parts.free < available)  # else every entry is 0 or 1, and no threshold exists
    target = jnp.where(inner, parts.free, 1).astype(jnp.float32)[..., None]
    size = jnp.where(inner, available, 2).astype(jnp.float32)[..., None]
    coarse, fine = _threshold(scaled, parts.ordinary, target, size)
    entries = jax.nn.sigmoid((scaled - coarse) - fine)
    return jnp.where(inner[..., None], entries, (parts.free > 0).astype(jnp.float32)[..., None])


@jax.custom_jvp
def _threshold(scaled: Array, ordinary: Array, target: Array, size: Array) -> tuple[Array, Array]:
    """t with sum sigmoid(scaled - t) = target over the ordinary, as a coarse and a fine part.

    The nearest float to t is not enough where |t| is large (at 1e3 floats are 6e-5 apart): `scaled - coarse` is exact
    for the entries near the threshold, and Newton's steps find the fine rest.
    """

    def total(shifted: Array) -> Array:
        return jnp.sum(jnp.where(ordinary, jax.nn.sigmoid(shifted), np.float32(0)), axis=-1, keepdims=True)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low & high) + lax.shift_right_arithmetic(low ^ high, 1)  # the mean, without overflow
        above = total(scaled - _from_ordered(middle)) > target
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # All entries equal to the largest would need t = max - logit(target / size); so for the smallest.
    offset = jnp.log(target) - jnp.log(size - target)
    low = jnp.min(jnp.where(ordinary, scaled, jnp.inf), axis=-1, keepdims=True, initial=np.float32(3e38)) - offset - 1
    high = (
        jnp.max(jnp.where(ordinary, scaled, -jnp.inf), axis=-1, keepdims=True, initial=np.float32(-3e38)) - offset + 1
    )
    _, high = lax.fori_loop(0, _ROUNDS, halve, (_to_ordered(low), _to_ordered(high)))
    coarse = _from_ordered(high)
    shifted = scaled - coarse
    fine = jnp.zeros_like(coarse)
    reach = 1 + jnp.abs(coarse) * np.float32(1e-6)
    for _ in range(_POLISH):
        entries = jax.nn.sigmoid(shifted - fine)
        slope = jnp.sum(jnp.where(ordinary, entries * (1 - entries), np.float32(0)), axis=-1, keepdims=True)
        step = (total(shifted - fine) - target) / jnp.maximum(slope, np.float32(1e-20))
        fine = fine + jnp.clip(step, -reach, reach)
    return coarse, fine


@_threshold.defjvp
def _threshold_jvp(primals, tangents):
    scaled, ordinary, target, size = primals
    coarse, fine = _threshold(scaled, ordinary, target, size)
    # Implicit function theorem; the weights as a softmax of log sigmoid', which stays defined where every sigmoid'
    # underflows.
    distance = jnp.abs((scaled - coarse) - fine)
    log_slope = -distance - 2 * jnp.log1p(jnp.exp(-distance))
    weights = jax.nn.softmax(jnp.where(ordinary, log_slope, np.float32(-1e30)), axis=-1)
    moved = jnp.sum(weights * tangents[0], axis=-1, keepdims=True)
    return (coarse, fine), (jnp.zeros_like(coarse), moved)


def _to_ordered(x: Array) -> Array:
    """int32 image of float32 with the same order."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ (lax.shift_right_arithmetic(bits, 31) & 0x7FFFFFFF)


def _from_ordered(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits ^ (lax.shift_right_arithmetic(bits, 31) & 0x7FFFFFFF), jnp.float32)


def _successive_entries(parts: Split, tau: Array, steps: int) -> Array:
    tiny = np.finfo(np.float32).tiny

    @jax.checkpoint
    def take(state: tuple[Array, Array], step: Array) -> tuple[tuple[Array, Array], None]:
        weights, entries = state
        taken = _masked_softmax(weights / tau, parts.ordinary)
        active = (step < parts.free)[..., None]
        entries = jnp.where(active, entries + taken, entries)
        left = weights + jnp.log(jnp.maximum(1 - taken, tiny))
        return (jnp.where(taken < 1, left, _OUT), entries), None  # none is taken twice

    start = (parts.values, jnp.zeros_like(parts.values))
    (_, entries), _ = lax.scan(take, start, jnp.arange(steps, dtype=jnp.int32))
    return jnp.where((parts.free > steps)[..., None], jnp.nan, entries)


def _masked_softmax(x: Array, where: Array) -> Array:
    x = jnp.where(where, x, _OUT)
    weights = jnp.exp(x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, initial=_OUT)))
    weights = jnp.where(where, weights, np.float32(0))
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
