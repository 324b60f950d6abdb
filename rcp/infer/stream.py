"""Reading and decoding through a cache of fixed size: long prompts and long answers in the memory of short ones.

What is decoded goes into a tail; when that holds a chunk, what is kept is chosen anew of context and tail, by the code
that evicts while a prompt streams in (`rcp.eviction.stream`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.eviction import stream as streams
from rcp.eviction.prompt import Eviction
from rcp.eviction.stream import Stream
from rcp.infer.generate import Generated
from rcp.infer.sample import Sampling, next_token
from rcp.nn.cache import tail_of
from rcp.nn.chunk import last_states
from rcp.nn.transformer import Transformer


def prefill_stream(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    eviction: Eviction,
    *,
    size: int,
    chunk: int,
    valid: Bool[Array, "batch tokens"] | None = None,
    budget: Int[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch vocab"], Stream]:
    """Reads prompts, padded at either end: the logits after each example's last token, and the stream behind it.

    Args:
      size: entries that a head keeps. chunk: tokens read between evictions.
      budget: as in `rcp.eviction.stream.step`: less than the size, where heads share it unevenly.

    Raises:
      ValueError: the policy draws, or `rcp.eviction.stream.start` has something against it.
    """
    if eviction.policy.draws:
        raise ValueError(f"policy {eviction.policy.name!r} draws, and a stream that is read has no keys for it")
    batch, width = tokens.shape
    there = jnp.ones(tokens.shape, bool) if valid is None else valid

    def in_chunks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, -width % chunk)))
        return jnp.moveaxis(padded.reshape(batch, -1, chunk), 1, 0)

    def one(carry: tuple[Stream, Array], part: tuple[Array, Array]) -> tuple[tuple[Stream, Array], None]:
        stream, last = carry
        tokens, there = part
        h, stream = streams.step(model, stream, tokens, eviction, valid=there, budget=budget)
        return (stream, last_states(h, there, last)), None

    start = streams.start(model, eviction, batch, size=size, chunk=chunk)
    none = jnp.zeros((batch, model.config.d_model), jnp.float32)
    (stream, last), _ = lax.scan(one, (start, none), (in_chunks(tokens), in_chunks(there)))
    return model.logits(last), stream


class Spoken(NamedTuple):
    """Where decoding through a stream stands: logits after the last token, what is kept, which rows have ended."""

    logits: Float[Array, "batch vocab"]
    stream: Stream
    done: Bool[Array, " batch"]


def decode_chunk(
    model: Transformer,
    state: Spoken,
    eviction: Eviction,
    *,
    chunk: int,
    first: Int[Array, ""] | int = 0,
    most: Int[Array, ""] | int | None = None,
    budget: Int[Array, " batch"] | None = None,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
) -> tuple[Generated, Spoken]:
    """The next `chunk` tokens, then an eviction: for answers without an end, a call a chunk. To be called in `jax.jit`.

    Args:
      state: at first the logits and stream of `prefill_stream`, and no row ended. `chunk`, `budget` are the same.
      first: tokens decoded before, which number the draws. most: at most so many are decoded now.
    """
    batch = len(state.logits)
    ends = jnp.asarray(list(eos_ids) or [-1], jnp.int32)
    last = chunk if most is None else jnp.minimum(most, chunk)

    def running(state):
        number, *_, done, _, _ = state
        return (number < last) & ~jnp.all(done)

    def one(state):
        number, logits, stream, tail, done, out, length = state
        token = jnp.where(done, pad_id, next_token(logits, sampling, first + number))
        out = lax.dynamic_update_slice(out, token[:, None], (0, number))
        h, tail, stream = streams.read_behind(model, stream, tail, token[:, None], eviction, valid=~done[:, None])
        length = length + ~done
        done = done | jnp.any(token[:, None] == ends[None, :], axis=1)
        return number + 1, model.logits(h[:, 0]), stream, tail, done, out, length

    tail = tail_of(state.stream.context, chunk)
    out, length = jnp.full((batch, chunk), pad_id, jnp.int32), jnp.zeros((batch,), jnp.int32)
    start = (jnp.int32(0), state.logits, state.stream, tail, state.done, out, length)
    _, logits, stream, tail, done, out, length = lax.while_loop(running, one, start)
    return Generated(out, length), Spoken(
        logits, streams.evict(model, stream, tail, eviction, budget=budget).stream, done
    )


def decode_stream(
    model: Transformer,
    logits: Float[Array, "batch vocab"],
    stream: Stream,
    eviction: Eviction,
    *,
    chunk: int,
    max_new: int,
    budget: Int[Array, " batch"] | None = None,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
) -> tuple[Generated, Stream]:
    """Continues behind a stream, until every example has ended or has `max_new` tokens. To be called in `jax.jit`.

    Greedily, or by draws as `sampling` says. Memory is that of the stream's entries and a chunk's, whatever `max_new`.

    Args:
      logits, stream: what `prefill_stream` gives; `chunk`, `budget` are the same.

    Returns:
      The tokens, and the stream behind them: all of them read and evicted from. Ended rows read nothing more.
    """
    batch, room = len(logits), -(-max_new // chunk) * chunk

    def running(state):
        first, spoken, _, _ = state
        return (first < max_new) & ~jnp.all(spoken.done)

    def advance(state):
        first, spoken, out, length = state
        options = {"budget": budget, "eos_ids": eos_ids, "pad_id": pad_id, "sampling": sampling}
        said, spoken = decode_chunk(model, spoken, eviction, chunk=chunk, first=first, most=max_new - first, **options)
        out = lax.dynamic_update_slice(out, said.tokens, (0, first))
        return first + chunk, spoken, out, length + said.length

    start = (
        jnp.int32(0),
        Spoken(logits, stream, jnp.zeros((batch,), bool)),
        jnp.full((batch, room), pad_id, jnp.int32),
        jnp.zeros((batch,), jnp.int32),
    )
    _, spoken, out, length = lax.while_loop(running, advance, start)
    return Generated(out[:, :max_new], length), spoken.stream
