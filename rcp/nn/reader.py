"""The model as a reader: what it makes of a prompt, measured on the gold answer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.layout import prompt_lengths
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role

CHUNK = 256  # places whose vocabulary-wide logits exist at a time: 50 MB for a vocabulary of 50,000


class Reading(NamedTuple):
    """Attributes:
    nll_sum: float32 [batch], negative log-likelihood of the gold answer in nats, summed over its tokens.
    answer_tokens: int32 [batch].
    exact: bool [batch]; every answer token is the most likely one, so that greedy decoding gives exactly the answer.
    answer_mask: bool [batch, answer], places that hold an answer token.
    log_probs: float32 [batch, answer, vocab], next-token log-probabilities at those places; None unless asked for.
    """

    nll_sum: Float[Array, " batch"]
    answer_tokens: Int[Array, " batch"]
    exact: Bool[Array, " batch"]
    answer_mask: Bool[Array, "batch answer"]
    log_probs: Float[Array, "batch answer vocab"] | None = None

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
    log_probs: bool = False,
) -> Reading:
    """Reads prompts with their gold answers in one pass (teacher forcing).

    Args:
      batch: whole or compacted prompts.
      max_answer: static bound on answer tokens; logits are computed at the answer's places only.
      keep: mask over tokens (hard or relaxed), see `Transformer.hidden`; None where the batch is compacted.
      positions: rotary positions; None counts the tokens of `batch`, which repacks a compacted prompt.
      log_probs: also return those of the whole vocabulary, all at once in memory.
    """
    h = model.hidden(batch.tokens, lengths=prompt_lengths(batch), keep=keep, positions=positions)
    return judge(model, h, batch.tokens, batch.role == Role.ANSWER, max_answer=max_answer, log_probs=log_probs)


def judge(
    model: Transformer,
    h: Float[Array, "batch tokens dim"],
    tokens: Int[Array, "batch tokens"],
    answer: Bool[Array, "batch tokens"],
    *,
    max_answer: int,
    log_probs: bool = False,
) -> Reading:
    """What the final hidden states of some tokens say of the gold answer among them.

    Args:
      answer: its tokens, side by side, none of them the first of its row.
    """
    first = jnp.argmax(answer, axis=1).astype(jnp.int32)[:, None]
    place = first + jnp.arange(max_answer, dtype=jnp.int32)[None]
    inside = jnp.minimum(place, tokens.shape[1] - 1)
    mask = jnp.take_along_axis(answer, inside, axis=1) & (place == inside)
    target = jnp.take_along_axis(tokens, inside, axis=1)
    before = jnp.maximum(inside - 1, 0)
    states = jnp.take_along_axis(h, before[..., None], axis=1)
    nll, best = next_token(model, states, target, mask)
    exact = jnp.all((best == target) | ~mask, axis=1)
    every = jax.nn.log_softmax(model.logits(states), axis=-1) if log_probs else None
    total = jnp.sum(jnp.where(mask, nll, 0.0), axis=1)
    return Reading(total, jnp.sum(mask, axis=1, dtype=jnp.int32), exact, mask, every)


def next_token(
    model: Transformer,
    states: Float[Array, "*batch dim"],
    target: Int[Array, "*batch"],
    there: Bool[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Int[Array, "*batch"]]:
    """-log p(target) in nats and the most likely token, from final hidden states; `CHUNK` places at a time.

    Places that are not `there` get 0 and token 0: they come last, and chunks that hold no others are skipped (answers
    are mostly far shorter than the longest, and the vocabulary's logits are a good part of a small model's work). The
    logits of a chunk are computed again in the backward pass.
    """
    flat, wanted, real = states.reshape(-1, states.shape[-1]), target.reshape(-1), there.reshape(-1)

    def chunk(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = model.logits(part[0])
        chosen = jnp.take_along_axis(logits, part[1][:, None], axis=-1)[:, 0]
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.nn.logsumexp(logits, axis=-1) - chosen, best

    count = len(wanted)
    if count <= CHUNK:
        nll, best = chunk((flat, wanted))
    else:
        order = jnp.argsort(~real, stable=True)
        flat = jnp.pad(flat[order], ((0, -count % CHUNK), (0, 0))).reshape(-1, CHUNK, flat.shape[-1])
        wanted = jnp.pad(wanted[order], (0, -count % CHUNK)).reshape(-1, CHUNK)
        needed = jnp.arange(len(wanted)) * CHUNK < jnp.sum(real)
        nothing = (jnp.zeros(CHUNK, jnp.float32), jnp.zeros(CHUNK, jnp.int32))

        def chunk_or_nothing(part: tuple[Array, tuple[Array, Array]]) -> tuple[Array, Array]:
            return jax.lax.cond(part[0], jax.checkpoint(chunk), lambda _: nothing, part[1])

        found = jax.lax.map(chunk_or_nothing, (needed, (flat, wanted)))
        place = jnp.argsort(order)
        nll, best = (x.reshape(-1)[:count][place] for x in found)
    nll, best = jnp.where(real, nll, 0.0), jnp.where(real, best, 0)
    return nll.reshape(target.shape), best.reshape(target.shape)
