"""The `Subset` that every sampler returns, what its logits mean, and the log-probability of an unordered set.

Logits carry the guarantees: `+inf` is always kept, `-inf` (or not valid) never. What lies between is *ordinary*, and
only ordinary tokens take part in a distribution. With more `+inf` than k, the first k of them are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.sampling.order import LOG_ZERO

_LOGIT_BOUND = np.float32(1e29)  # `finfo.min` as a logit stays well above LOG_ZERO and its sums stay finite
_TAIL_NATS = 18.0  # what the quadrature cuts off: exp(-18), less than float32 resolves
_NODES = 64


class Subset(NamedTuple):
    """k of the tokens of each example.

    Attributes:
      mask: bool [*batch, tokens], exactly min(k, number of tokens that may be kept) ones (`bernoulli` alone has no k).
      rank: int32 [*batch, tokens], a permutation: place in the order of drawing, 0 first. `mask` is `rank <
        mask.sum()`.
      log_prob: float32 [*batch], of the sample under the sampler's own distribution; differentiable in the logits.
    """

    mask: Bool[Array, "*batch tokens"]
    rank: Int[Array, "*batch tokens"]
    log_prob: Float[Array, " *batch"]


class Split(NamedTuple):
    """Logits taken apart. Shapes [*batch, tokens] and [*batch].

    Attributes:
      values: float32 logits, 0 where not ordinary; gradients reach the ordinary logits alone.
      ordinary: neither forced nor excluded.
      forced: valid and `+inf`.
      kept: how many are kept in all.
      free: how many of the ordinary are kept.
    """

    values: Float[Array, "*batch tokens"]
    ordinary: Bool[Array, "*batch tokens"]
    forced: Bool[Array, "*batch tokens"]
    kept: Int[Array, " *batch"]
    free: Int[Array, " *batch"]


def split(
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"] | None = None,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Split:
    """Checks the arguments every sampler takes and separates ordinary from forced and excluded tokens.

    `k=None` means all of them. A NaN logit counts as ordinary, so that it shows as NaN in the result.

    Raises:
      TypeError: logits not of a floating type, k not an integer.
      ValueError: logits without an axis, k negative or of another shape than the batch, valid of another shape.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be of a floating type, not {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError("logits must have an axis of tokens")
    if valid is not None:
        valid = jnp.asarray(valid)
        if valid.shape != logits.shape or valid.dtype != jnp.bool_:
            raise ValueError(f"valid must be bool {logits.shape}, not {valid.dtype} {valid.shape}")
    return _split(logits, None if k is None else _counts(k, logits.shape[:-1]), valid)


@jax.jit
def _split(logits: Array, k: Array | None, valid: Array | None) -> Split:
    values = logits.astype(jnp.float32)
    excluded = values == -jnp.inf
    if valid is not None:
        excluded = excluded | ~valid
    forced = (values == jnp.inf) & ~excluded
    ordinary = ~(forced | excluded)
    values = jnp.clip(jnp.where(ordinary, values, np.float32(0)), -_LOGIT_BOUND, _LOGIT_BOUND)
    forced_count = jnp.sum(forced, axis=-1, dtype=jnp.int32)
    available = forced_count + jnp.sum(ordinary, axis=-1, dtype=jnp.int32)
    kept = available
    if k is not None:
        kept = jnp.clip(jnp.broadcast_to(k.astype(jnp.int32), available.shape), 0, available)
    return Split(values, ordinary, forced, kept, jnp.maximum(kept - forced_count, 0))


def _counts(k: int | Array, batch: tuple[int, ...]) -> Array:
    if isinstance(k, (int, np.integer)) and not isinstance(k, bool):
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        return jnp.asarray(np.int32(min(int(k), np.iinfo(np.int32).max)))
    k = jnp.asarray(k)
    if not jnp.issubdtype(k.dtype, jnp.integer):
        raise TypeError(f"k must be an int or an integer array, not {k.dtype}")
    if k.shape not in ((), batch):
        raise ValueError(f"k must be a scalar or have the batch shape {batch}, not {k.shape}")
    return k


def centred(parts: Split) -> Float[Array, "*batch tokens"]:
    """Ordinary logits less a constant: no probability changes, and a large common offset costs no digits.

    The constant is the mean of the logits below 1e5 in size (of all, where none is) rather than the maximum, so that
    one huge logit (`finfo.min`, say) does not move the others.
    """
    usual = parts.ordinary & (jnp.abs(parts.values) < 1e5)
    usual = jnp.where(jnp.any(usual, axis=-1, keepdims=True), usual, parts.ordinary)
    count = jnp.maximum(jnp.sum(usual, axis=-1, keepdims=True, dtype=jnp.int32), 1)
    mean = jnp.sum(jnp.where(usual, parts.values, np.float32(0)), axis=-1, keepdims=True) / count.astype(jnp.float32)
    return jnp.where(parts.ordinary, parts.values - lax.stop_gradient(mean), np.float32(0))


def forced_mask(parts: Split) -> Bool[Array, "*batch tokens"]:
    """The forced tokens that are kept: all, or the first k where there are more than k."""
    place = jnp.cumsum(parts.forced, axis=-1, dtype=jnp.int32)
    return parts.forced & (place <= parts.kept[..., None])


def is_possible(mask: Bool[Array, "*batch tokens"], parts: Split) -> Bool[Array, " *batch"]:
    """Whether a set can be drawn at all: nothing excluded in it, and nothing ordinary before every forced token."""
    excluded = jnp.any(mask & ~parts.ordinary & ~parts.forced, axis=-1)
    skipped = jnp.any(parts.forced & ~mask, axis=-1) & jnp.any(mask & parts.ordinary, axis=-1)
    return ~(excluded | skipped)


def rank_by_index(mask: Bool[Array, "*batch tokens"]) -> Int[Array, "*batch tokens"]:
    """The `rank` of a draw without an order: the kept tokens by index, then the others by index."""
    kept = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    others = jnp.cumsum(~mask, axis=-1, dtype=jnp.int32)
    return jnp.where(mask, kept - 1, kept[..., -1:] + others - 1)


def set_log_prob(
    logits: Float[Array, "*batch tokens"],
    mask: Bool[Array, "*batch tokens"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Float[Array, " *batch"]:
    """Plackett-Luce, unordered: log-probability that Gumbel top-k draws exactly the set `mask`, in whatever order.

    With D the tokens left out, r_s = phi_s - logsumexp_D(phi) and Gumbel variables phi + G, the set is drawn when its
    smallest variable exceeds the largest of D (Kool et al., arXiv 2002.06043). With u = exp(-e^y),

        p(S) = int_0^1 prod_{s in S} (1 - u^exp(r_s)) du
             = int exp(y - e^y + sum_{s in S} log(1 - exp(-e^(y + r_s)))) dy.

    The second integrand is log-concave and entire in y, so the trapezoidal rule converges geometrically. Its mode
    lies in [0, log(1 + k)], and beyond the mode, where a = e^mode, it has fallen by at least a(e^d - 1 - d) at a
    distance d to the right and a(d - 1 + e^-d) to the left: 64 nodes between the points where these reach 18 nats are
    exact to float32. O(tokens) for each node.

    Args:
      logits: [*batch, tokens].
      mask: the set; its size is its own. Tokens with `+inf` contribute nothing.
      valid: tokens that may be kept; all where None.

    Returns:
      float32 [*batch], differentiable in the logits; `-inf` for a set that cannot be drawn. (Of more
        `+inf` than k the samplers keep the first k; here they count as alike.)
    """
    parts = split(logits, None, valid)
    mask = jnp.asarray(mask)
    if mask.shape != parts.values.shape:
        raise ValueError(f"mask must have the shape of the logits {parts.values.shape}, not {mask.shape}")
    return _set_log_prob(parts, mask)


@jax.jit
def _set_log_prob(parts: Split, mask: Array) -> Float[Array, " *batch"]:
    inside, outside = mask & parts.ordinary, ~mask & parts.ordinary
    rest = jax.nn.logsumexp(jnp.where(outside, parts.values, LOG_ZERO), axis=-1, keepdims=True)
    ratio = jnp.where(inside, parts.values - rest, np.float32(0))
    nodes, spacing = lax.stop_gradient(_nodes(ratio, inside))

    @jax.checkpoint  # keeps a node's [*batch, tokens] intermediate values out of memory in the backward pass
    def log_integrand(node: Float[Array, "*batch 1"]) -> Float[Array, " *batch"]:
        terms = jnp.where(inside, _log_gumbel_survival(ratio + node), np.float32(0))
        return node[..., 0] - jnp.exp(node[..., 0]) + jnp.sum(terms, axis=-1)

    total = jax.nn.logsumexp(lax.map(log_integrand, nodes), axis=0) + jnp.log(spacing)
    certain = ~jnp.any(inside, axis=-1) | ~jnp.any(outside, axis=-1)
    total = jnp.where(certain, np.float32(0), jnp.minimum(total, np.float32(0)))
    return jnp.where(is_possible(mask, parts), total, -jnp.inf)


def _nodes(ratio: Array, inside: Array) -> tuple[Float[Array, "nodes *batch 1"], Float[Array, " *batch"]]:
    """Quadrature nodes on both sides of the integrand's mode, and their spacing."""

    def slope(y: Array) -> Array:  # of the log integrand; d/dz log(1 - exp(-e^z)) = e^z / (exp(e^z) - 1)
        x = jnp.exp(jnp.clip(ratio + y, -30.0, 4.0))
        return 1 - jnp.exp(y) + jnp.sum(jnp.where(inside, x / jnp.expm1(x), np.float32(0)), axis=-1, keepdims=True)

    size = jnp.sum(inside, axis=-1, keepdims=True, dtype=jnp.int32).astype(jnp.float32)
    mode = _bisect(slope, jnp.zeros_like(size), jnp.log1p(size), rounds=14)
    scale = _TAIL_NATS * jnp.exp(-mode)
    zero = jnp.zeros_like(mode)
    right = _bisect(lambda d: scale - (jnp.expm1(d) - d), zero, zero + 4.0, rounds=20)
    left = _bisect(lambda d: scale - (d + jnp.expm1(-d)), zero, zero + (_TAIL_NATS + 2.0), rounds=20)
    spacing = (left + right) / (_NODES - 1)
    steps = jnp.arange(_NODES, dtype=jnp.float32).reshape((_NODES,) + (1,) * mode.ndim)
    return (mode - left)[None] + steps * spacing[None], spacing[..., 0]


def _bisect(decreasing, low: Array, high: Array, *, rounds: int) -> Array:
    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = decreasing(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = lax.fori_loop(0, rounds, halve, (low, high))
    return (low + high) / 2


def _log_gumbel_survival(z: Array) -> Array:
    """log(1 - exp(-e^z)), each branch where it is accurate and with arguments that keep every gradient finite."""
    x = jnp.exp(jnp.clip(z, -10.0, 20.0))
    small = jnp.log(-jnp.expm1(-jnp.minimum(x, 1.0)))
    large = jnp.log1p(-jnp.exp(-jnp.maximum(x, 0.5)))
    tiny = z - jnp.exp(jnp.minimum(z, -10.0)) / 2
    return jnp.where(z < -10.0, tiny, jnp.where(x < 0.7, small, large))


def leave_one_out(values: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """The mean of the *other* values along an axis: the leave-one-out baseline of REINFORCE (Kool et al., 2019).

    Raises:
      ValueError: fewer than two values along the axis.
    """
    count = values.shape[axis]
    if count < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples along axis {axis}, got {count}")
    return (jnp.sum(values, axis=axis, keepdims=True) - values) / (count - 1)
