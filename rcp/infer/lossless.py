"""Lossless decoding: drafted behind the pruned context, verified in blocks behind the whole one.

Speculative decoding (Leviathan et al., arXiv 2211.17192) with the model itself as its drafter, which reads a small part
of the cache (as in TriForce, arXiv 2404.11912, and MagicDec, arXiv 2408.11049). A block of `gamma` tokens is drafted,
one after the other. The whole context then reads it at once and says at each place which token it would have chosen:
the drafts up to the first that differs are right, and in its place stands the token of the whole context. So every
token is the choice of the whole context, whatever the drafter, and each block gives one to `gamma + 1` of them.

Both contexts share one tail, which only verification writes. The drafter thus sees nothing of its own but the drafts of
the block it is in: all else that it reads behind its context, the question too, was written by the whole one.

Departure: where tokens are drawn, drafter and verifier use the same Gumbel noise at the same place (Daliri et al.,
arXiv 2408.07978) in place of the rejection rule. The rule accepts more (1 - TV of the two distributions, against at
least (1 - TV) / (1 + TV)), but keeps the distribution alone, while here the very tokens are those that `decode` draws
with the same keys, and greedy decoding is temperature 0.

Limit: a block and a single token are read by different matrix products, which round differently. Where the two
likeliest tokens are closer than that, the choice may differ from `decode`'s; experiments/results/lossless.md counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.infer.sample import Sampling, next_token
from rcp.nn.cache import Context, KVCache, append
from rcp.nn.step import DecodingWeights, New, as_tokens, joined, laid_cache, laid_context, logits_of, step, unstacked
from rcp.nn.step import room as room_for
from rcp.nn.transformer import Transformer


class Lossless(NamedTuple):
    """New tokens as in `Generated`, and how they came about.

    Attributes:
      drafted, accepted: drafts, and those of them that the whole context chose too; drafts behind the end of an answer
        are not counted.
      blocks: verified. The first token needs none: `length - 1` tokens came from them.
    """

    tokens: Int[Array, "batch new"]
    length: Int[Array, " batch"]
    drafted: Int[Array, " batch"]
    accepted: Int[Array, " batch"]
    blocks: Int[Array, " batch"]


class _State(NamedTuple):
    """`token`: the newest, which nothing has read yet. `tail`: of all tokens before it."""

    token: Int[Array, " batch"]
    tail: KVCache
    done: Bool[Array, " batch"]
    found: Lossless


def decode_lossless(
    model: Transformer,
    logits: Float[Array, "batch vocab"],
    tail: KVCache,
    *,
    whole: Context,
    pruned: Context,
    gamma: int,
    max_new: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
    weights: DecodingWeights | None = None,
    drafting: DecodingWeights | None = None,
) -> Lossless:
    """What `decode` gives behind the whole context, until every example has ended or has `max_new` tokens.

    Args:
      logits: after the last token read. tail: of what was read behind the whole context, with room for
        `max_new + gamma` tokens more.
      pruned: its next position must be that of the whole one (see `rcp.eviction.compaction.moved`).
      gamma: tokens drafted a block.
      weights: as in `rcp.infer.generate.decode`. drafting: others to draft by, such as rounded ones.
    """
    if gamma < 1 or max_new < 1:
        raise ValueError(f"gamma={gamma}, max_new={max_new}: expected both from 1 on")
    batch = logits.shape[0]
    ends = jnp.asarray(list(eos_ids) or [-1], jnp.int32)
    place = jnp.arange(gamma + 1, dtype=jnp.int32)[None]
    weights = unstacked(model) if weights is None else weights
    drafting = weights if drafting is None else drafting
    before_draft, before_block = laid_context(pruned), laid_context(whole)
    drafted, verified = (room_for(model, batch, count) for count in (gamma, gamma + 1))

    def block(state: _State) -> _State:
        tail, at = state.tail, state.found.length
        read = laid_cache(tail, tail.capacity)

        def draft(carry: tuple[Array, New], number: Array) -> tuple[tuple[Array, New], Array]:
            token, new = carry
            position = tail.position + number
            h, new = step(model, drafting, joined(before_draft, read), new, number, token[:, None], position)
            token = next_token(logits_of(model, drafting, h[:, 0]), sampling, at + number)
            return (token, new), token

        _, drafts = lax.scan(draft, (state.token, drafted), jnp.arange(gamma, dtype=jnp.int32))
        tokens = jnp.concatenate([state.token[:, None], drafts.T], axis=1)
        h, new = step(model, weights, joined(before_block, read), verified, 0, tokens, tail.position)
        tail = append(tail, *as_tokens(new, batch), None, tail.position + gamma + 1)
        after = logits_of(model, weights, h)
        chosen = jax.vmap(lambda x, at: next_token(x, sampling, at), 1, 1)(after, at[:, None] + place)
        return _accepted(state._replace(tail=tail), drafts.T, chosen, ends)

    first = next_token(logits, sampling, 0)
    none = jnp.zeros((batch,), jnp.int32)
    tokens = jnp.full((batch, max_new), pad_id, jnp.int32).at[:, 0].set(first)
    done = _is_end(first[:, None], ends)[:, 0] | (max_new == 1)
    start = _State(first, tail, done, Lossless(tokens, none + 1, none, none, none))
    return lax.while_loop(lambda state: ~jnp.all(state.done), block, start).found


def _accepted(
    state: _State,
    drafts: Int[Array, "batch gamma"],
    chosen: Int[Array, "batch gamma+1"],
    ends: Int[Array, " ends"],
) -> _State:
    """The state with what a block brought: the drafts up to the first that was not `chosen`, and what was in its place.

    The tail holds the whole block and is cut back. An answer ends at its first end token, or where it has no more room.
    """
    found, gamma, room = state.found, drafts.shape[1], state.found.tokens.shape[1]
    place = jnp.arange(gamma + 1, dtype=jnp.int32)[None]
    step = found.length[:, None] + place
    right = jnp.sum(jnp.cumprod(chosen[:, :-1] == drafts, axis=1, dtype=jnp.int32), axis=1)
    end = _is_end(chosen, ends)
    ended = jnp.cumsum(end, axis=1, dtype=jnp.int32) - end > 0  # before this place
    new = ~state.done[:, None] & (place <= right[:, None]) & ~ended & (step < room)
    count = jnp.sum(new, axis=1, dtype=jnp.int32)
    newest = jnp.take_along_axis(chosen, jnp.maximum(count - 1, 0)[:, None], axis=1)
    length = found.length + count
    done = state.done | _is_end(newest, ends)[:, 0] | (length >= room)
    drafted = jnp.where(done, jnp.minimum(count, gamma), gamma)
    row = jnp.arange(len(drafts))[:, None]
    found = Lossless(
        found.tokens.at[row, jnp.where(new, step, room)].set(chosen, mode="drop"),
        length,
        found.drafted + jnp.where(state.done, 0, drafted),
        found.accepted + jnp.minimum(count, right),
        found.blocks + ~state.done,
    )
    tail = state.tail
    tail = tail._replace(length=tail.length + count - gamma - 1, position=tail.position + count - gamma - 1)
    return _State(newest[:, 0], tail, done, found)


def _is_end(tokens: Int[Array, "batch tokens"], ends: Int[Array, " ends"]) -> Bool[Array, "batch tokens"]:
    return jnp.any(tokens[..., None] == ends[None, None], axis=-1)
