"""The differentiable keep-mask for objectives that learn through the reader: a relaxation of `rcp.nn.pruner.prune`."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp import sampling
from rcp.nn import layout
from rcp.nn.pruner import (
    SEGMENT_STREAM,
    TOKEN_STREAM,
    Cut,
    Granularity,
    Scores,
    guaranteed,
    prune,
    segment_logits,
    token_logits,
)
from rcp.types import Batch

Method = Literal["threshold", "successive", "straight_through", "sigmoid"]


def relax(
    scores: Scores,
    batch: Batch,
    budget: Int[Array, " batch"],
    *,
    granularity: Granularity,
    temperature: float,
    method: Method,
    cut: Cut = "end",
    keys: Array | None = None,
) -> Float[Array, "batch tokens"]:
    """A keep-mask over the prompt that is differentiable in the scores: 1 on fixed and forced tokens, 0 on padding.

    "threshold" and "successive" are `rcp.sampling.relaxed_top_k`; "straight_through" takes its value from the hard draw
    (exactly what `prune` keeps at this granularity with these keys) and its gradient from "threshold"; "sigmoid" gates
    each unit by itself, so that the budget holds only on average and a `budget` objective must push it there. At
    segment granularity all tokens of a segment share one value, and k is the number of segments that the hard draw
    looks at. "two_stage" is relaxed as one draw of tokens from the whole context, so segment scores get no gradient.

    Args:
      keys: one key an example; None for no noise. Gumbel noise, that of the hard draw, or for "sigmoid" logistic noise
        (the binary concrete distribution, arXiv 1611.00712): at a low temperature a unit is kept with probability
        sigmoid(logit).
    """
    context, by_segment = layout.in_context(batch), granularity == "segment"
    logits = segment_logits(scores, batch) if by_segment else token_logits(scores, batch, context)
    hard = prune(scores, batch, budget, granularity=granularity, cut=cut, keys=keys)
    noisy = logits
    if keys is not None:
        noisy = logits + _noise(keys, SEGMENT_STREAM if by_segment else TOKEN_STREAM, logits)
        if method == "sigmoid":  # a difference of two Gumbel variables is logistic
            noisy -= _noise(keys, TOKEN_STREAM + 1, logits)
    if method == "sigmoid":
        finite = jnp.isfinite(logits)
        soft = jnp.where(finite, jax.nn.sigmoid(jnp.where(finite, noisy, 0.0) / temperature), 0.0)
        soft = jnp.where(logits == jnp.inf, 1.0, soft)
    else:
        k = hard.drawn if by_segment else jnp.sum(hard.keep, axis=1, dtype=jnp.int32)
        relaxed = "successive" if method == "successive" else "threshold"
        soft = sampling.relaxed_top_k(noisy, k, temperature, method=relaxed)
    if by_segment:
        soft = layout.of_segment(soft, batch)
    if method == "straight_through":
        soft = sampling.straight_through(hard.keep.astype(jnp.float32), soft)
    return jnp.where(guaranteed(batch), 1.0, jnp.where(context, soft, 0.0))


def _noise(keys: Array, stream: int, like: Array) -> Array:
    """Gumbel noise in the shape of `like`, each row from its own key: that of `prune`'s draws."""
    return jax.vmap(lambda key: sampling.gumbel_noise(jax.random.fold_in(key, stream), like.shape[1:]))(keys)
