"""Scores and budgets -> which entries are kept: exactly the budget, in every example.

As everywhere here, guarantees are infinities: an entry that must be kept has score +inf before any sampler sees it, a
slot not in use -inf.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rcp import sampling
from rcp.eviction.allotment import Allotment
from rcp.sampling import Subset

LARGEST = 1e30  # bound on a policy's scores: infinity is for guarantees alone


def select(
    scores: Float[Array, "batch layers kv_heads entries"],
    budget: Int[Array, "batch layers"],
    *,
    valid: Bool[Array, "batch layers kv_heads entries"],
    forced: Bool[Array, "batch layers kv_heads entries"] | None = None,
    beside: Bool[Array, "batch layers kv_heads entries"] | None = None,
    allotment: Allotment,
    most: int | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Subset:
    """Which entries are kept.

    Within what competes (`allotment.across`: a head, the heads of a layer, the model) exactly as many as the sum of the
    budgets are kept, of those that are valid and not `beside`; all that are forced where these are more.

    Args:
      budget: entries that a head of each layer keeps, the mean over its heads (`layer_budgets`); may be traced.
      forced: entries that must be kept and count. beside: entries that are kept and do not count, as the question's.
      allotment: of it, `across` and `floor`.
      most: static bound on the entries that a head keeps, besides those `beside`: the others are shared out within it.
      keys: one an example, to draw (Gumbel top-k, Plackett-Luce); None keeps the best, deterministically.

    Returns:
      Subset whose mask is [batch, layers, kv_heads, entries]; rank and log_prob are of the top-k, whose last axis holds
      all that competes: log_prob is [batch, layers, kv_heads], [batch, layers] or [batch].
    """
    batch, layers, heads, entries = scores.shape
    nothing = jnp.zeros(scores.shape, bool)
    beside = nothing if beside is None else beside & valid
    forced = nothing if forced is None else forced & valid & ~beside
    logits = jnp.where(valid & ~beside, jnp.clip(scores, -LARGEST, LARGEST), -jnp.inf)
    logits = jnp.where(forced, jnp.inf, logits)
    budget = budget.astype(jnp.int32)
    if most is not None:
        logits = jnp.where(sampling.top_k(logits, most).mask, logits, -jnp.inf)
    if allotment.across != "head" and allotment.floor > 0:
        sure = jnp.floor(allotment.floor * budget.astype(jnp.float32) + 1e-4).astype(jnp.int32)
        safe = sampling.top_k(logits, jnp.broadcast_to(sure[..., None], logits.shape[:3])).mask
        logits = jnp.where(safe & (logits > -jnp.inf), jnp.inf, logits)
    shape = {
        "head": (batch, layers, heads, entries),
        "layer": (batch, layers, heads * entries),
        "model": (batch, layers * heads * entries),
    }[allotment.across]
    total = jnp.broadcast_to(budget[..., None], (batch, layers, heads))
    total = total if allotment.across == "head" else total.sum(axis=2)
    total = total.sum(axis=1) if allotment.across == "model" else total
    guaranteed = jnp.sum((logits == jnp.inf).reshape(shape), axis=-1, dtype=jnp.int32)
    added = jnp.sum(beside.reshape(shape), axis=-1, dtype=jnp.int32)
    logits = jnp.where(beside, jnp.inf, logits).reshape(shape)
    count = jnp.maximum(total, guaranteed) + added
    if keys is None:
        subset = sampling.top_k(logits, count)
    else:
        subset = jax.vmap(sampling.gumbel_top_k)(keys, logits, count)
    return subset._replace(mask=subset.mask.reshape(scores.shape))


def guarantees(
    valid: Bool[Array, "batch layers kv_heads entries"], *, sinks: int = 0, recent: int = 0
) -> Bool[Array, "batch layers kv_heads entries"]:
    """The first `sinks` entries of every head and its last `recent` ones."""
    place = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
    return valid & ((place < sinks) | (place >= place[..., -1:] + 1 - recent))
