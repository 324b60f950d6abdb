"""Objectives of learned eviction: scores of cache entries against what the entries turned out to be good for.

Entries compete within a head, a layer or the model; `grouped` makes that the last axis, and every function below has
[batch, groups, entries]. Entries that are kept in any case, and slots not in use, are not `free` and take no part.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp import sampling
from rcp.sampling.order import LOG_ZERO, cumulative_logsumexp, gather, inverse_permutation

Across = Literal["head", "layer", "model"]


def grouped(x: Array, across: Across) -> Array:
    """[batch, layers, kv_heads, entries] as [batch, groups, entries that compete]."""
    batch, layers, heads, entries = x.shape
    groups = {"head": layers * heads, "layer": layers, "model": 1}[across]
    return x.reshape(batch, groups, layers * heads * entries // groups)


def golden(
    scores: Float[Array, "batch groups entries"],
    useful: Float[Array, "batch groups entries"],
    free: Bool[Array, "batch groups entries"],
) -> Float[Array, " batch"]:
    """KL(u / sum u || softmax(scores)), mean over groups, nats: a listwise cross-entropy towards the golden ranking.

    In expectation over contexts it is least where scores are log E[u | what the scorer sees] plus a constant, where a
    group's sum of u does not vary: keeping the best of these keeps the most of u to be expected, at every budget.
    """
    share = _share(useful, free)
    logits = jnp.where(free, scores, LOG_ZERO)
    log_share = jnp.log(jnp.maximum(share, 1e-30))
    terms = jnp.where(share > 0, share * (log_share - jax.nn.log_softmax(logits, axis=-1)), 0.0)
    return terms.sum(axis=-1).mean(axis=-1)


class Rankings(NamedTuple):
    """Full rankings of the free entries, drawn for each group.

    Attributes:
      order: number of the entry at each place; entries that are not free stand behind the others.
      log_probs: of the entry at each place, given those before it; differentiable in the scores. Their sum is the
        Plackett-Luce log-probability of the ranking.
      reward: share of u kept, mean over all budgets 1 .. n (`retained`).
      to_go: the same, of it what the place itself has an influence on: budgets that reach it.
    """

    order: Int[Array, "samples batch groups entries"]
    log_probs: Float[Array, "samples batch groups entries"]
    reward: Float[Array, "samples batch groups"]
    to_go: Float[Array, "samples batch groups entries"]


def draw_rankings(
    keys: Array,
    scores: Float[Array, "batch groups entries"],
    useful: Float[Array, "batch groups entries"],
    free: Bool[Array, "batch groups entries"],
) -> Rankings:
    """Rankings by Gumbel top-k with k = n. `keys` is [samples, batch]."""
    logits = jnp.where(free, scores, -jnp.inf)

    def of_example(key: Array, logits: Array) -> Array:
        return sampling.gumbel_top_k(key, logits, logits.shape[-1]).rank

    ranks = jax.vmap(jax.vmap(of_example), in_axes=(0, None))(keys, jax.lax.stop_gradient(logits))
    return judged(inverse_permutation(ranks), scores, useful, free)


def judged(
    order: Int[Array, "samples batch groups entries"], scores: Array, useful: Array, free: Bool[Array, "..."]
) -> Rankings:
    """What rankings earn, and how likely each of their choices was."""

    def sorted_(x: Array) -> Array:
        return gather(jnp.broadcast_to(x[None], order.shape), order)

    there = sorted_(free)
    logits = jnp.where(there, sorted_(scores), LOG_ZERO)
    log_probs = jnp.where(there, logits - cumulative_logsumexp(logits, reverse=True), 0.0)
    kept = jnp.cumsum(sorted_(_share(useful, free)), axis=-1)
    count = jnp.maximum(there.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
    kept = jnp.where(there, kept, 0.0) / count
    to_go = jnp.cumsum(kept[..., ::-1], axis=-1)[..., ::-1]
    return Rankings(order, log_probs, to_go[..., 0], to_go)


def ranking(rankings: Rankings) -> Float[Array, " batch"]:
    """REINFORCE over rankings that are judged at every budget at once (KVP, arXiv 2602.10238), mean over groups.

    The reward of a ranking is a sum over budgets, and the entry at place i matters to budgets from i on only. So its
    log-probability is weighed by the reward of those, less the mean of the same over the other draws (leave-one-out):
    unbiased, as the whole ranking's reward would be, with less variance. Ours; the paper's estimator is not known.
    """
    baseline = sampling.leave_one_out(rankings.to_go, axis=0)
    advantage = jax.lax.stop_gradient(rankings.to_go - baseline)
    return -jnp.sum(advantage * rankings.log_probs, axis=-1).mean(axis=(0, 2))


def task(reward: Float[Array, "samples batch"], log_prob: Float[Array, "samples batch"]) -> Float[Array, " batch"]:
    """REINFORCE with the leave-one-out baseline over drawn subsets of entries, rewarded by the answer's likelihood."""
    advantage = jax.lax.stop_gradient(reward - sampling.leave_one_out(reward, axis=0))
    return -jnp.mean(advantage * log_prob, axis=0)


def distil(
    full: Float[Array, "batch tokens vocab"],
    pruned: Float[Array, "batch tokens vocab"],
    said: Bool[Array, "batch tokens"],
) -> Float[Array, " batch"]:
    """KL(full cache || pruned cache) of the next token, mean over the answer's places, nats. Log-probabilities in."""
    values = jnp.sum(jnp.exp(full) * (full - pruned), axis=-1)
    count = jnp.maximum(jnp.sum(said, axis=1), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(said, values, 0.0), axis=1) / count


def retained(
    scores: Float[Array, "batch groups entries"],
    useful: Float[Array, "batch groups entries"],
    free: Bool[Array, "batch groups entries"],
    rate: float,
) -> Float[Array, " batch"]:
    """Share of u that the best `rate` of the free entries hold, mean over groups."""
    count = sampling.count_of_rate(free.sum(axis=-1, dtype=jnp.int32), jnp.float32(rate))
    kept = sampling.top_k(jax.lax.stop_gradient(scores), count, valid=free).mask
    return jnp.sum(jnp.where(kept, _share(useful, free), 0.0), axis=-1).mean(axis=-1)


def _share(useful: Array, free: Array) -> Array:
    """u as shares of its group's sum; 0 where it is not free, and everywhere in a group without any."""
    useful = jnp.where(free, useful.astype(jnp.float32), 0.0)
    return useful / jnp.maximum(useful.sum(axis=-1, keepdims=True), 1e-30)
