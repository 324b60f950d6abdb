"""Gumbel top-k, which is Plackett-Luce sampling without replacement (Kool et al., arXiv 1903.06059).

Everything here belongs to one distribution: tokens are drawn one after another, each with probability proportional to
exp(logit) among those not yet drawn. The k draws are the k largest of logits plus independent Gumbel noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.sampling.order import (
    LOG_ZERO,
    cumulative_logsumexp,
    descending_image,
    gather,
    gumbel_noise,
    inverse_permutation,
    stable_argsort,
)
from rcp.sampling.subset import Split, Subset, centred, split


def gumbel_top_k(
    key: Array,
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Subset:
    """Plackett-Luce sample of k tokens without replacement, by Gumbel top-k. O(tokens log tokens).

    Args:
      key: one random key for the whole batch (vmap over keys to give each example its own).
      logits: [*batch, tokens] of any floating type; computed in float32. `+inf` is always kept, `-inf` never.
      k: how many to keep: an int, or a traced integer scalar or [*batch] array (no recompilation per value).
      valid: tokens that may be kept; all where None.

    Returns:
      Subset with exactly min(k, tokens that may be kept) ones. `rank` is the place in the perturbed order: `+inf`
      tokens first by index, then the ordinary as drawn, then the excluded by index. `log_prob` is of the ordered
      sample, `+inf` tokens contributing 0 (they are certain, and nothing is random about their order); its gradient
      in the logits is the score function with the sample held fixed.

    Raises:
      TypeError, ValueError: see `rcp.sampling.subset.split`.
    """
    parts = split(logits, k, valid)
    return _draw(key, parts)


def top_k(
    logits: Float[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Subset:
    """The k largest logits, deterministic: the mode of Plackett-Luce. Ties go to the lower index.

    Arguments and result as in `gumbel_top_k`; `log_prob` is what Plackett-Luce gives to this ordered selection.
    """
    parts = split(logits, k, valid)
    return _take(parts, parts.values)


@jax.jit
def _draw(key: Array, parts: Split) -> Subset:
    return _take(parts, parts.values + gumbel_noise(key, parts.values.shape))


@jax.jit
def _take(parts: Split, keys: Array) -> Subset:
    excluded = ~(parts.ordinary | parts.forced)
    order = stable_argsort(descending_image(lax.stop_gradient(keys), parts.forced, excluded))
    rank = inverse_permutation(order)
    mask = rank < parts.kept[..., None]
    return Subset(mask, rank, _plackett_luce(centred(parts), parts.ordinary, order, rank, parts.kept))


def log_prob(
    logits: Float[Array, "*batch tokens"],
    rank: Int[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Float[Array, " *batch"]:
    """Plackett-Luce log-probability of an *ordered* sample drawn earlier, under these logits (for off-policy ratios).

        log p = sum_{i < k} [phi_{s_i} - logsumexp over what is not yet drawn],   s_i the token with rank i.

    Args:
      logits: [*batch, tokens]; those that drew the sample or any others.
      rank: as returned by `gumbel_top_k`; a permutation of the tokens. Only the order of the first k matters.
      k: how many were drawn.
      valid: tokens that may be kept; all where None.

    Returns:
      float32 [*batch], differentiable in the logits; `-inf` (with gradient 0) where the sample cannot occur: an
      excluded token among the first k, or a `+inf` token behind an ordinary one.
    """
    parts = split(logits, k, valid)
    if jnp.shape(rank) != parts.values.shape:
        raise ValueError(f"rank must have the shape of the logits {parts.values.shape}, not {jnp.shape(rank)}")
    return _ordered_log_prob(parts, jnp.asarray(rank).astype(jnp.int32))


@jax.jit
def _ordered_log_prob(parts: Split, rank: Array) -> Float[Array, " *batch"]:
    value = _plackett_luce(centred(parts), parts.ordinary, inverse_permutation(rank), rank, parts.kept)
    drawn = rank < parts.kept[..., None]
    count = rank.shape[-1]
    first_ordinary = jnp.min(jnp.where(parts.ordinary & drawn, rank, count), axis=-1, initial=count)
    last_forced = jnp.max(jnp.where(parts.forced, rank, -1), axis=-1, initial=-1)
    excluded = jnp.any(drawn & ~parts.ordinary & ~parts.forced, axis=-1)
    return jnp.where(excluded | (first_ordinary < last_forced), -jnp.inf, value)


@jax.custom_jvp
def _plackett_luce(values: Array, ordinary: Array, order: Array, rank: Array, kept: Array) -> Float[Array, " *batch"]:
    return _in_order(values, ordinary, order, kept)[0]


@_plackett_luce.defjvp
def _plackett_luce_jvp(primals, tangents):
    # d log p / d phi_j = [j drawn] - sum_{i <= min(rank_j, k - 1)} exp(phi_j - L_i), L_i the logsumexp left at draw
    # i: a forward cumulative logsumexp of -L_i, and a gather by rank. Written out, it costs as much as the value
    # itself.
    values, ordinary, order, rank, kept = primals
    log_p, logits, counted, left = _in_order(values, ordinary, order, kept)
    log_spent = cumulative_logsumexp(jnp.where(counted, -left, LOG_ZERO))
    score = counted.astype(jnp.float32) - jnp.exp(logits + log_spent)
    score = jnp.where(ordinary, gather(score, rank), np.float32(0))
    return log_p, jnp.sum(score * tangents[0], axis=-1)


def _in_order(values: Array, ordinary: Array, order: Array, kept: Array) -> tuple[Array, Array, Array, Array]:
    """log p, and in the order of drawing: the logits, which of them count, the logsumexp of what is left at each."""
    logits = gather(jnp.where(ordinary, values, LOG_ZERO), order)
    left = cumulative_logsumexp(logits, reverse=True)
    place = lax.broadcasted_iota(jnp.int32, order.shape, order.ndim - 1)
    counted = (place < kept[..., None]) & gather(ordinary, order)
    return jnp.sum(jnp.where(counted, logits - left, np.float32(0)), axis=-1), logits, counted, left


def entropy(
    logits: Float[Array, "*batch tokens"],
    rank: Int[Array, "*batch tokens"],
    k: int | Int[Array, " *batch"],
    *,
    valid: Bool[Array, "*batch tokens"] | None = None,
) -> Float[Array, " *batch"]:
    """Plackett-Luce: one-sample *estimate*, unbiased, of the entropy (nats) of the ordered sample.

    The chain rule along the sampled order: sum_{i < k} H(next token | tokens drawn before i). Each term is an exact
    entropy; only the path is sampled, so the variance is far below that of -log_prob, and for k = 1 there is none. The
    gradient is that of the terms with the path held fixed. The entropy of the unordered set is smaller, by at most
    log(k!).

    Args and shapes as in `log_prob`.
    """
    parts = split(logits, k, valid)
    if jnp.shape(rank) != parts.values.shape:
        raise ValueError(f"rank must have the shape of the logits {parts.values.shape}, not {jnp.shape(rank)}")
    return _entropy(parts, jnp.asarray(rank).astype(jnp.int32))


@jax.jit
def _entropy(parts: Split, rank: Array) -> Float[Array, " *batch"]:
    order = inverse_permutation(rank)
    _, logits, counted, left = _in_order(centred(parts), parts.ordinary, order, parts.kept)
    # With q_i the probability of draw i, grouping gives H_i = h(q_i) + (1 - q_i) H_{i+1}, h the binary entropy, and
    # 1 - q_i = exp(L_{i+1} - L_i), hence H_i = sum_{j >= i} h(q_j) exp(L_j - L_i): positive terms, so nothing cancels.
    after = jnp.concatenate([left[..., 1:], jnp.full_like(left[..., :1], LOG_ZERO)], axis=-1)
    own, rest = jnp.minimum(logits - left, np.float32(0)), jnp.minimum(after - left, np.float32(0))
    binary = jnp.where(gather(parts.ordinary, order), -own * jnp.exp(own) - rest * jnp.exp(rest), np.float32(0))
    positive = binary > 1e-30
    log_binary = jnp.where(positive, jnp.log(jnp.where(positive, binary, np.float32(1))), LOG_ZERO)
    terms = jnp.exp(cumulative_logsumexp(log_binary + jnp.maximum(left, LOG_ZERO), reverse=True) - left)
    return jnp.sum(jnp.where(counted, terms, np.float32(0)), axis=-1)
