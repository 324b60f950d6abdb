"""Reading one more chunk of tokens behind a compacted context and a cache, with an eye on what each layer does.

The layers do what `Transformer.hidden` has them do. What is added: the past may be a `Context`, whose runs of layers
differ in capacity and whose heads differ in length, and `observe` is called in every layer with its queries, keys and
hidden states, so that statistics for eviction are gathered while these exist and never stored for a whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable
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
      slots: static bound on the tokens in the tail: later slots are not looked at. None looks at all.
      observe: from what was observed in a layer so far and what it did with the chunk, what has been observed now.
      observed: a tree whose leaves have a leading axis of layers. Anything that belongs to a layer can ride in it, the
        parameters of a scorer too.
    """
    h = model.embed(tokens)
    positions = count_positions(h.shape[:2], valid, cache.position)
    rope = rope_tables(positions, model.frequencies())
    there = jnp.ones(tokens.shape, bool) if valid is None else valid
    place = cache.length[:, None] + jnp.maximum(jnp.cumsum(there, axis=1, dtype=jnp.int32) - 1, 0)
    slots = cache.capacity if slots is None else slots
    weights = sliceable(model.layers.tree())
    layers = model.config.n_layers
    outputs = []
    first = 0
    for run in (None,) if context is None else context.runs:
        count = layers if run is None else run.k.shape[0]
        whole = count == layers

        def of_run(x: Array, first: int = first, count: int = count, whole: bool = whole) -> Array:
            return x if whole else x[first : first + count]

        each: dict[str, Any] = {
            "number": first + jnp.arange(count, dtype=jnp.int32),
            "run": run,
            "tail": tuple(of_run(x[:, :, :slots]) for x in (cache.k, cache.v)) if slots else None,
            "observed": jax.tree.map(of_run, observed),
        }
        if whole:  # else weights are picked by number: slicing them first would copy them
            each["weights"] = weights

        def layer(h: Array, each: dict[str, Any]) -> tuple[Array, Any]:
            w = each["weights"] if "weights" in each else _pick(weights, each["number"])
            w = readable(w)
            p = model.project(w, h, rope)
            past = _past(each["run"], each["tail"], cache.length)
            mixed = attention(p.q, p.k, p.v, valid=valid, past=past or None)
            seen = each["observed"]
            if observe is not None:
                before = 0 if each["run"] is None else each["run"].k.shape[1]
                slot = jnp.where(there, before + place, NOWHERE)
                seen = observe(seen, LayerRead(each["number"], p, past, there, positions, slot))
            return model.finish(w, h, mixed), (p.k, p.v, seen)

        h, out = lax.scan(layer, h, each)
        outputs.append(out)
        first += count
    if first != layers:
        raise ValueError(f"the context has {first} layers, the model {layers}")
    k, v, observed = outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
    h = rms_norm(h, model.norm[...], model.config.norm_eps)
    last = jnp.where(there, positions, -1).max(axis=1) + 1
    return h, kv.append(cache, k, v, valid, jnp.maximum(last, cache.position)), observed


def _past(run: Entries | None, tail: tuple[Array, Array] | None, length: Int[Array, " batch"]) -> tuple[Past, ...]:
    """The parts of a layer's past: its slice of the context and of the tail."""
    parts = []
    if run is not None:
        parts.append(Past(run.k, run.v, run.length, run.keep))
    if tail is not None:
        parts.append(Past(*tail, length))
    return tuple(parts)


def _pick(stacked: Any, number: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, number, keepdims=False), stacked)
