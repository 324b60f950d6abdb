"""Choosing the next token: the likeliest, or a draw at a temperature from the smallest set that reaches a probability.

Temperature and nucleus (top-p) sampling (Holtzman et al., arXiv 1904.09751). A draw is the largest of
logits + temperature * Gumbel noise, so temperature 0 is greedy decoding without a case of its own, and the temperature
may be traced. The noise of an example comes from a key of its own: what it draws does not depend on its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

SMALLEST = 1e-4  # temperature below which the probabilities for top-p are those at it


class Sampling(NamedTuple):
    """Attributes:
    keys: one an example.
    temperature: 0 is greedy.
    top_p: only the likeliest tokens whose probabilities together reach it can be drawn; None: all tokens.
    """

    keys: Key[Array, " batch"]
    temperature: Float[Array, ""] | float = 1.0
    top_p: Float[Array, ""] | float | None = None


def next_token(
    logits: Float[Array, "batch vocab"], sampling: Sampling | None, step: Int[Array, " batch"] | Int[Array, ""] | int
) -> Int[Array, " batch"]:
    """The next token of each example; `step` numbers the draws of a continuation, one number or one an example."""
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    temperature = jnp.asarray(sampling.temperature, jnp.float32)
    logits = logits.astype(jnp.float32)
    if sampling.top_p is not None:
        probs = jax.nn.softmax(logits / jnp.maximum(temperature, SMALLEST), axis=-1)
        logits = jnp.where(nucleus(probs, sampling.top_p), logits, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, jnp.broadcast_to(jnp.asarray(step), sampling.keys.shape))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def nucleus(probs: Float[Array, "batch vocab"], top_p: Float[Array, ""] | float) -> Array:
    """Which tokens are in the smallest set that reaches `top_p`, bool [batch, vocab]; never empty, all at 1."""
    order = jnp.argsort(-probs, axis=-1, stable=True)
    ranked = jnp.take_along_axis(probs, order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    inside = (before < top_p) | (jnp.asarray(top_p) >= 1.0)
    inside = inside.at[:, 0].set(True)
    return jnp.take_along_axis(inside, jnp.argsort(order, axis=-1), axis=-1)


def sample_keys(seed: int, index: Int[Array, " batch"], samples: int) -> Key[Array, "batch samples"]:
    """Keys of the samples of examples, from their numbers alone."""
    base = jax.random.key(seed)
    numbers = jnp.arange(samples, dtype=jnp.int32)
    return jax.vmap(lambda i: jax.vmap(lambda j: jax.random.fold_in(jax.random.fold_in(base, i), j))(numbers))(index)
