"""Decoding with a key-value cache: prefill (with really dropped tokens, if asked), then one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.infer.sample import Sampling, next_token, sample_keys
from rcp.nn.cache import Context, KVCache, append, repeated, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.step import (
    DecodingWeights,
    New,
    Past,
    as_tokens,
    joined,
    laid_cache,
    laid_context,
    logits_of,
    step,
    unstacked,
)
from rcp.nn.step import room as room_for
from rcp.nn.transformer import Transformer
from rcp.types import Tokenizer


class Generated(NamedTuple):
    """New tokens: `length[b]` of them, the end-of-sequence token included where it came, then padding."""

    tokens: Int[Array, "batch new"]
    length: Int[Array, " batch"]


def prefill(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    *,
    capacity: int,
    valid: Bool[Array, "batch tokens"] | None = None,
    keep: Bool[Array, "batch tokens"] | None = None,
    positions: Int[Array, "batch tokens"] | None = None,
) -> tuple[Float[Array, "batch vocab"], KVCache]:
    """Reads prompts; returns the logits after each example's last valid token, and the cache.

    Args:
      capacity: slots of the returned cache: the most tokens kept in an example, and room for what will be decoded.
      valid: False on padding, at either end.
      keep: dropped tokens (False) are seen by no other token and take no slot. The last valid token must be kept.
      positions: rotary positions; the default leaves the dropped tokens' places empty.
    """
    batch, width = tokens.shape
    cache = model.new_cache(batch, max(capacity, width))
    h, cache = model.hidden(tokens, valid=valid, keep=keep, positions=positions, cache=cache, slots=0)
    return _last_logits(model, h, valid), cache._replace(k=cache.k[:, :, :capacity], v=cache.v[:, :, :capacity])


def prefill_behind(
    model: Transformer,
    context: Context,
    tokens: Int[Array, "batch tokens"],
    *,
    valid: Bool[Array, "batch tokens"] | None = None,
    room: int,
) -> tuple[Float[Array, "batch vocab"], KVCache]:
    """Reads tokens behind a context: the logits after each example's last one, and the tail with `room` for more."""
    width = tokens.shape[1]
    tail = tail_of(context, width + room, model.dtype)
    h, tail, _ = read_chunk(model, tokens, tail, context=context, valid=valid, slots=0)
    return _last_logits(model, h, valid), tail


def _last_logits(model: Transformer, h: Array, valid: Array | None) -> Float[Array, "batch vocab"]:
    """After each example's last valid token, from hidden states [batch, tokens, dim]."""
    place = jnp.arange(h.shape[1])[None]
    last = jnp.full((len(h),), h.shape[1] - 1) if valid is None else jnp.max(jnp.where(valid, place, 0), axis=1)
    return model.logits(jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0])


class Decoding(NamedTuple):
    """A decoding under way.

    Attributes:
      number: tokens decoded so far; less in a row that has ended.
      logits: after the last of them. new: keys and values of those that were read.
      done: which rows have ended. tokens, length: as in `Generated`. read: tokens read, of each row.
    """

    number: Int[Array, ""]
    logits: Float[Array, "batch vocab"]
    new: New
    done: Bool[Array, " batch"]
    tokens: Int[Array, "batch new"]
    length: Int[Array, " batch"]
    read: Int[Array, " batch"]


def begin(model: Transformer, logits: Float[Array, "batch vocab"], *, max_new: int, pad_id: int = 0) -> Decoding:
    """Nothing decoded yet behind what gave the logits; room for `max_new` tokens."""
    batch = len(logits)
    none = jnp.zeros((batch,), jnp.int32)
    tokens = jnp.full((batch, max_new), pad_id, jnp.int32)
    return Decoding(
        jnp.int32(0), logits, room_for(model, batch, max_new), jnp.zeros((batch,), bool), tokens, none, none
    )


def advance(
    model: Transformer,
    weights: DecodingWeights,
    past: Past,
    position: Int[Array, " batch"],
    state: Decoding,
    *,
    until: Int[Array, ""] | int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
) -> Decoding:
    """Decodes on until there are `until` tokens, at most those that there is room for, or every row has ended.

    Args:
      past: what comes before the new tokens, laid out (`rcp.nn.step`). position: rotary, of the first of them.
    """
    ends = jnp.asarray(list(eos_ids) or [-1], jnp.int32)
    last = jnp.minimum(until, state.tokens.shape[1])

    def running(state: Decoding) -> Bool[Array, ""]:
        return (state.number < last) & ~jnp.all(state.done)

    def one(state: Decoding) -> Decoding:
        number, logits, new, done, out, length, read = state
        token = jnp.where(done, pad_id, next_token(logits, sampling, number))
        out = lax.dynamic_update_slice(out, token[:, None], (0, number))
        length = length + ~done
        done = done | jnp.any(token[:, None] == ends[None, :], axis=1)
        # The last token of all needs no reading, but stopping for it would cost a branch a step.
        h, new = step(model, weights, past, new, number, token[:, None], position + read)
        return Decoding(number + 1, logits_of(model, weights, h[:, 0]), new, done, out, length, read + ~done)

    return lax.while_loop(running, one, state)


def decode(
    model: Transformer,
    logits: Float[Array, "batch vocab"],
    cache: KVCache,
    *,
    max_new: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
    context: Context | None = None,
    weights: DecodingWeights | None = None,
) -> tuple[Generated, KVCache]:
    """Continues from `prefill`'s result, until every example has ended or has `max_new` tokens.

    Greedily, or by draws as `sampling` says. The last `max_new` slots of the cache must be free.

    Args:
      context: what comes before `cache`, which is its tail then (`rcp.nn.cache`).
      weights: what `rcp.nn.step.unstacked` makes of the model; None makes it here, which copies all layers.
    """
    batch = len(logits)
    weights = unstacked(model) if weights is None else weights
    past = laid_out(cache, max_new, context)
    state = begin(model, logits, max_new=max_new, pad_id=pad_id)
    options = {"until": max_new, "eos_ids": eos_ids, "pad_id": pad_id, "sampling": sampling}
    state = advance(model, weights, past, cache.position, state, **options)
    stored = jnp.arange(max_new)[None] < state.read[:, None]
    after = append(cache, *as_tokens(state.new, batch), stored, cache.position + state.read)
    return Generated(state.tokens, state.length), after


def laid_out(cache: KVCache, max_new: int, context: Context | None = None) -> Past:
    """A context and its tail, whose last `max_new` slots must be free, as decoding reads them."""
    if cache.capacity < max_new:
        raise ValueError(f"a cache of {cache.capacity} slots has no room for {max_new} new tokens")
    past = laid_cache(cache, cache.capacity - max_new)
    return past if context is None else joined(laid_context(context), past)


def generate(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    *,
    max_new: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    valid: Bool[Array, "batch tokens"] | None = None,
    keep: Bool[Array, "batch tokens"] | None = None,
    positions: Int[Array, "batch tokens"] | None = None,
    capacity: int | None = None,
) -> Generated:
    """Greedy continuation of a batch of prompts, padded at either end. To be called inside `jax.jit`.

    `capacity` bounds prompt tokens kept plus new ones (default: all of both); the rest is as in `prefill` and `decode`.
    """
    capacity = tokens.shape[1] + max_new if capacity is None else capacity
    logits, cache = prefill(model, tokens, capacity=capacity, valid=valid, keep=keep, positions=positions)
    return decode(model, logits, cache, max_new=max_new, eos_ids=eos_ids, pad_id=pad_id)[0]


def generate_samples(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    index: Int[Array, " batch"],
    *,
    samples: int,
    temperature: Float[Array, ""] | float,
    top_p: Float[Array, ""] | float | None = None,
    seed: int = 0,
    max_new: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    valid: Bool[Array, "batch tokens"] | None = None,
) -> Generated:
    """`samples` continuations of each prompt, which is read once: arrays [batch, samples, ...]. For use inside `jit`.

    `index` names the examples: with `seed` it alone decides an example's draws, whatever batch it is in. The rows of
    the cache are repeated after the prefill and decoded together.
    """
    logits, cache = prefill(model, tokens, capacity=tokens.shape[1] + max_new, valid=valid)
    drawn = Sampling(sample_keys(seed, index, samples).reshape(-1), temperature, top_p)
    found, _ = decode(
        model,
        jnp.repeat(logits, samples, axis=0),
        repeated(cache, samples),
        max_new=max_new,
        eos_ids=eos_ids,
        pad_id=pad_id,
        sampling=drawn,
    )
    return Generated(*(x.reshape(-1, samples, *x.shape[1:]) for x in found))


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def _generate(graph, params, tokens, valid, *, max_new, eos_ids, pad_id):
    model = nnx.merge(graph, params)
    return generate(model, tokens, valid=valid, max_new=max_new, eos_ids=eos_ids, pad_id=pad_id)


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new: int = 64, multiple: int = 64
) -> list[str]:
    """Text in, text out: greedy continuations, without the end-of-sequence token. One compile per padded length.

    Raises:
      ValueError: a prompt with no tokens.
    """
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    if not rows or not all(rows):
        raise ValueError("generate_text needs at least one prompt, and no empty one")
    width = -(-max(map(len, rows)) // multiple) * multiple
    tokens = np.full((len(rows), width), tokenizer.pad_id, np.int32)
    valid = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], valid[i, : len(row)] = row, True
    graph, params = nnx.split(model)
    eos_ids = (tokenizer.eos_id,)
    out = _generate(graph, params, tokens, valid, max_new=max_new, eos_ids=eos_ids, pad_id=tokenizer.pad_id)
    texts = []
    for row, length in zip(np.asarray(out.tokens), np.asarray(out.length), strict=True):
        ids = row[:length].tolist()
        texts.append(tokenizer.decode(ids[:-1] if ids and ids[-1] in eos_ids else ids))
    return texts
