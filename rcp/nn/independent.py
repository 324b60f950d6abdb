"""Segments, then tokens of the segments that are left, each kept or not by itself (CoT-Influx, arXiv 2312.08901).

A segment survives with probability sigmoid(its logit), at least one of those that are not forced: where none does, the
original draws again, and the probability here is that of the conditional draw. Of a surviving segment the first `LEAD`
tokens are kept, every other with probability sigmoid(its logit). No budget enters: how much is kept is learned from a
reward on the length.

Departure: the original's three positions are those of its encoder's tokens, ours of the reader's.

Logits come with the guarantees (see `rcp.nn.pruner`): +inf for what is forced or outside the context.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcp import sampling
from rcp.nn import layout
from rcp.sampling import Subset
from rcp.types import Batch

LEAD = 3
SEGMENT_STREAM, TOKEN_STREAM = 0, 1  # folded into an example's key for its draw of segments, and of tokens


class Decisions(NamedTuple):
    """What was decided of each prompt: over its segments, and over all its tokens (fixed ones kept)."""

    segments: Subset
    tokens: Subset


def decide(
    segments: Float[Array, "batch segments"], tokens: Float[Array, "batch tokens"], batch: Batch, keys: Array | None
) -> Decisions:
    """One draw an example with `keys`; None keeps what is kept with a probability above 1/2, at least one segment."""
    if keys is None:
        shots = sampling.bernoulli_mode(segments, at_least_one=True)
        return Decisions(shots, sampling.bernoulli_mode(_left(tokens, shots.mask, batch)))

    def draw(logits: Array, stream: int, at_least_one: bool) -> Subset:
        own = jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)
        return jax.vmap(lambda key, x: sampling.bernoulli(key, x, at_least_one=at_least_one))(own, logits)

    shots = draw(segments, SEGMENT_STREAM, True)
    return Decisions(shots, draw(_left(tokens, shots.mask, batch), TOKEN_STREAM, False))


def log_prob(
    segments: Float[Array, "batch segments"],
    tokens: Float[Array, "batch tokens"],
    batch: Batch,
    survivors: Bool[Array, "batch segments"],
    keep: Bool[Array, "batch tokens"],
) -> Float[Array, " batch"]:
    """Log-probability (nats) that just these segments survive, and just these tokens of them are kept."""
    shots = sampling.bernoulli_log_prob(segments, survivors, at_least_one=True)
    return shots + sampling.bernoulli_log_prob(_left(tokens, survivors, batch), keep)


def entropy(
    segments: Float[Array, "batch segments"],
    tokens: Float[Array, "batch tokens"],
    batch: Batch,
    survivors: Bool[Array, "batch segments"],
) -> Float[Array, " batch"]:
    """Entropy (nats) of the segments' draw, and of the tokens' draw given the `survivors`: averages to that of both."""
    shots = sampling.bernoulli_entropy(segments, at_least_one=True)
    return shots + sampling.bernoulli_entropy(_left(tokens, survivors, batch))


def _left(
    tokens: Float[Array, "batch tokens"], survivors: Bool[Array, "batch segments"], batch: Batch
) -> Float[Array, "batch tokens"]:
    """Token logits among the survivors: +inf at their first tokens, -inf in all other segments but for forced ones."""
    context, inside = layout.in_context(batch), layout.of_segment(survivors, batch)
    lead = jnp.where(context & (layout.places(batch) < LEAD), jnp.inf, tokens)
    return jnp.where(context & ~inside & (tokens < jnp.inf), -jnp.inf, lead)
