"""Reading one more chunk of tokens behind a compacted context and a cache, with an eye on what each layer does.

The layers do what `Transformer.hidden` has them do. What is added: the past may be a `Context`, whose runs of layers
differ in capacity and whose heads differ in length, and `observe` is called in every layer with its queries, keys and
hidden states, so that statistics for eviction are gathered while these exist and never stored for a whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn import cache as kv
from rcp.nn.attention import Past, attention
from rcp.nn.cache import Context, Entries, KVCache
from rcp.nn.layers import rms_norm, rope_tables
from rcp.nn.stacked import sliceable
from rcp.nn.transformer import Projected, Transformer, count_positions, readable

NOWHERE = np.iinfo(np.int32).max


class LayerRead(NamedTuple):
    """What a layer did with a chunk.

    Attributes:
      number: of the layer.
      projected: its queries, keys, values and hidden states of the chunk.
      past: what came before the chunk, in reading order.
      valid: False on padding. position: rotary position of each token.
      slot: where each token's entry will stand among the entries of the layer, those of the context first; out of
        bounds (the largest int32) for padding.
    """

    number: Int[Array, ""]
    projected: Projected
    past: tuple[Past, ...]
    valid: Bool[Array, "batch tokens"]
    position: Int[Array, "batch tokens"]
    slot: Int[Array, "batch tokens"]


Observe = Callable[[Any, LayerRead], Any]


def read_chunk(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    cache: KVCache,
    *,
    context: Context | None = None,
    valid: Bool[Array, "batch tokens"] | None = None,
    slots: int | None = None,
    observe: Observe | None = None,
    observed: Any = None,
) -> tuple[Float[Array, "batch tokens dim"], KVCache, Any]:
    """Hidden states after the last norm, the cache with the chunk appended, and what was observed.

    Args:
      cache: the tail: tokens read since `context`, or since the start.
      context: entries that come before the tail.
      valid: False on padding, at either end; None means none.
      slots: static bound on the tokens in the tail: later slots are not looked at. None looks at all. 0: it is empty.
      observe: from what was observed in a layer so far and what it did with the chunk, what has been observed now.
      observed: a tree whose leaves have a leading axis of layers. Anything that belongs to a layer can ride in it, the
        parameters of a scorer too.
    """
    layers = model.config.n_layers
    runs = (None,) if context is None else context.runs
    if context is not None and context.layers != layers:
        raise ValueError(f"the context has {context.layers} layers, the model {layers}")
    h = model.embed(tokens)
    positions = count_positions(h.shape[:2], valid, cache.position)
    there = jnp.ones(tokens.shape, bool) if valid is None else valid
    place = cache.length[:, None] + jnp.maximum(jnp.cumsum(there, axis=1, dtype=jnp.int32) - 1, 0)
    chunk = _Chunk(rope_tables(positions, model.frequencies()), valid, there, positions, place, cache.length)
    slots = cache.capacity if slots is None else slots
    weights = sliceable(model.layers.tree())
    outputs, first = [], 0
    for run in runs:
        count = layers if run is None else run.k.shape[0]
        part = slice(first, first + count)
        each: dict[str, Any] = {
            "number": first + jnp.arange(count, dtype=jnp.int32),
            "run": run,
            "tail": tuple(x[part, :, :slots] for x in (cache.k, cache.v)) if slots else None,
            "observed": observed if count == layers else jax.tree.map(lambda x, part=part: x[part], observed),
        }
        if count == layers:  # else weights are picked by number: slicing them first would copy them
            each["weights"] = weights
        body = partial(_read_layer, model, weights, chunk, observe)
        h, out = lax.scan(jax.checkpoint(body) if model.remat else body, h, each)
        outputs.append(out)
        first += count
    k, v, observed = outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
    h = rms_norm(h, model.norm[...], model.config.norm_eps)
    last = jnp.where(there, positions, -1).max(axis=1) + 1
    return h, kv.append(cache, k, v, valid, jnp.maximum(last, cache.position), empty=slots == 0), observed


def last_states(
    h: Float[Array, "batch tokens dim"], valid: Bool[Array, "batch tokens"], earlier: Float[Array, "batch dim"]
) -> Float[Array, "batch dim"]:
    """The hidden states after each example's last token: `earlier` where a chunk is padding alone."""
    place = jnp.max(jnp.where(valid, jnp.arange(h.shape[1])[None], 0), axis=1)
    final = jnp.take_along_axis(h, place[:, None, None], axis=1)[:, 0]
    return jnp.where(jnp.any(valid, axis=1)[:, None], final, earlier)


class _Chunk(NamedTuple):
    """What is the same for all layers. `place`: of each token in the tail. `length`: of the tail before the chunk."""

    rope: Any
    valid: Array | None
    there: Array
    position: Array
    place: Array
    length: Array


def _read_layer(
    model: Transformer, weights: Any, chunk: _Chunk, observe: Observe | None, h: Array, each: dict[str, Any]
) -> tuple[Array, Any]:
    """One layer: the hidden states after it; its new keys and values, and what has been observed."""
    number, run, seen = each["number"], each["run"], each["observed"]
    w = readable(each["weights"] if "weights" in each else pick_layer(weights, number))
    p = model.project(w, h, chunk.rope)
    past = _past(run, each["tail"], chunk.length)
    mixed = attention(p.q, p.k, p.v, valid=chunk.valid, past=past or None)
    if observe is not None:
        slot = jnp.where(chunk.there, (0 if run is None else run.k.shape[1]) + chunk.place, NOWHERE)
        seen = observe(seen, LayerRead(number, p, past, chunk.there, chunk.position, slot))
    return model.finish(w, h, mixed), (p.k, p.v, seen)


def _past(run: Entries | None, tail: tuple[Array, Array] | None, length: Int[Array, " batch"]) -> tuple[Past, ...]:
    """The parts of a layer's past: its slice of the context and of the tail."""
    parts = []
    if run is not None:
        parts.append(Past(run.k, run.v, run.length, run.keep, run.scales))
    if tail is not None:
        parts.append(Past(*tail, length))
    return tuple(parts)


def pick_layer(stacked: Any, number: Int[Array, ""]) -> Any:
    """One layer's part of stacked parameters."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, number, keepdims=False), stacked)
