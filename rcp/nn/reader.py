"""The model as a reader: what it makes of a prompt, measured on the gold answer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role


class Reading(NamedTuple):
    """Attributes:
    nll_sum: float32 [batch], negative log-likelihood of the gold answer in nats, summed over its tokens.
    answer_tokens: int32 [batch].
    exact: bool [batch]; every answer token is the most likely one, so that greedy decoding gives exactly the answer.
    log_probs: float32 [batch, answer, vocab], next-token log-probabilities at the answer's places; answer_mask: bool
      [batch, answer]. Both are dead code, and free, in a compiled function that does not use them.
    """

    nll_sum: Float[Array, " batch"]
    answer_tokens: Int[Array, " batch"]
    exact: Bool[Array, " batch"]
    log_probs: Float[Array, "batch answer vocab"]
    answer_mask: Bool[Array, "batch answer"]

    @property
    def nll(self) -> Float[Array, " batch"]:
        """Mean over the answer's tokens, nats."""
        return self.nll_sum / jnp.maximum(self.answer_tokens, 1).astype(jnp.float32)


def read(
    model: Transformer,
    batch: Batch,
    *,
    max_answer: int,
    keep: Float[Array, "batch tokens"] | None = None,
    positions: Int[Array, "batch tokens"] | None = None,
) -> Reading:
    """Reads prompts with their gold answers in one pass (teacher forcing).

    Args:
      batch: whole or compacted prompts.
      max_answer: static bound on answer tokens; logits are computed at the answer's places only.
      keep: mask over tokens (hard or relaxed), see `Transformer.hidden`; None where the batch is compacted.
      positions: rotary positions; None counts the tokens of `batch`, which repacks a compacted prompt.
    """
    h = model.hidden(batch.tokens, valid=batch.role != Role.PAD, keep=keep, positions=positions)
    answer = batch.role == Role.ANSWER
    first = jnp.argmax(answer, axis=1).astype(jnp.int32)[:, None]
    place = first + jnp.arange(max_answer, dtype=jnp.int32)[None]
    inside = jnp.minimum(place, batch.role.shape[1] - 1)
    mask = jnp.take_along_axis(answer, inside, axis=1) & (place == inside)
    target = jnp.take_along_axis(batch.tokens, inside, axis=1)
    before = jnp.maximum(inside - 1, 0)
    logits = model.logits(jnp.take_along_axis(h, before[..., None], axis=1))
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_probs, target[..., None], axis=2)[..., 0]
    exact = jnp.all((jnp.argmax(logits, axis=-1) == target) | ~mask, axis=1)
    return Reading(
        jnp.sum(jnp.where(mask, nll, 0.0), axis=1), jnp.sum(mask, axis=1, dtype=jnp.int32), exact, log_probs, mask
    )
