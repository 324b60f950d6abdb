"""The mean early state of each piece of a prompt, of every segment and of the question, each read by itself.

A piece's state then depends on its own tokens alone: worked examples of a fixed pool come again in prompt after
prompt, and need be read once (`rcp.nn.sight`). Each token's state is scaled to unit mean square before the mean is
taken: the first token's is far larger than the rest, and would otherwise tell only how long the piece is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.nn.each_segment import each_segment
from rcp.nn.layout import first_tokens, prompt_lengths
from rcp.nn.lengths import doubled, of_own_length
from rcp.nn.pruner import compact
from rcp.types import Batch, Role


def mean_states(
    model: Any, tokens: Int[Array, "pieces tokens"], lengths: Int[Array, " pieces"], layer: int
) -> Float[Array, "pieces dim"]:
    """Of texts, padded at the right end; after `layer` layers. 0 for a text without tokens."""
    states = model.hidden(tokens, lengths=lengths, stop=layer)
    states = states * jax.lax.rsqrt(jnp.mean(jnp.square(states), axis=-1, keepdims=True) + 1e-6)
    there = first_tokens(lengths, tokens.shape[1])[..., None]
    total = jnp.sum(jnp.where(there, states, 0.0), axis=1)
    return total / jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)


def piece_states(model: Any, batch: Batch, layer: int, length: int | None = None) -> Float[Array, "batch pieces dim"]:
    """Of every segment of the prompts and, last, of the question.

    Args:
      length: static, holds the longest segment and question; None for whatever a prompt can hold.
    """
    whole = batch.role.shape[1] if length is None else length

    def states(pieces: Batch) -> Float[Array, "batch dim"]:
        return mean_states(model, pieces.tokens, prompt_lengths(pieces), layer)

    segments = each_segment(states, lambda inside: inside, batch, whole, doubled)
    question = compact(batch, batch.role == Role.QUESTION, whole)
    question = of_own_length(lambda _, pieces: states(pieces), doubled)(None, question)
    return jnp.concatenate([segments, question[:, None]], axis=1)
