"""Dynamic context pruning in use: what a token drops leaves the cache (Anagnostidis et al., arXiv 2305.15805).

Beside its key and value every entry has what it shows to later tokens (`rcp.nn.interaction`), and stays as long as
every later token's score of it is above 0. All heads of a layer keep the same entries; layers differ. A chunk of any
size is read at once, also one of a single token, and gives what reading token by token gives: within a chunk a drop is
a weight of 0 from that query on, and after it the entry is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.eviction.compaction import Candidates, candidates, compact, in_one, order_of
from rcp.nn import cache as kv
from rcp.nn.attention import attend_block
from rcp.nn.cache import Context, Entries, as_context
from rcp.nn.chunk import pick_layer
from rcp.nn.interaction import Interaction, earlier, interaction_scores, project, survival
from rcp.nn.layers import rms_norm, rope_tables
from rcp.nn.layout import first_tokens
from rcp.nn.stacked import sliceable
from rcp.nn.transformer import Transformer, count_positions, readable


class DynamicContext(NamedTuple):
    """The entries left in each layer, and what they show to later tokens, a run of layers each as in `Context`."""

    context: Context
    shows: tuple[Float[Array, "layers batch capacity rank"], ...]


class DynamicRead(NamedTuple):
    """A chunk that was read, with nothing gathered yet.

    Attributes:
      h: hidden states after the last norm.
      found: the entries that there were and those of the chunk. shows: of each, to later tokens.
      keep: which of them the chunk's tokens have left.
      visible: how many earlier entries each token attended to.
    """

    h: Float[Array, "batch tokens model_dim"]
    found: Candidates
    shows: Float[Array, "layers batch entries rank"]
    keep: Bool[Array, "layers batch entries"]
    visible: Int[Array, "layers batch tokens"]

    @property
    def needed(self) -> Int[Array, " layers"]:
        """The most entries that a layer keeps in any example."""
        return jnp.sum(self.keep, axis=-1, dtype=jnp.int32).max(axis=1)


def start(model: Transformer, interaction: Interaction, batch: int, capacity: int = 0) -> DynamicContext:
    """Nothing read yet, with room for `capacity` entries a layer."""
    shown = (model.config.n_layers, batch, capacity, interaction["q"].shape[-1])
    return DynamicContext(as_context(model.new_cache(batch, capacity)), (jnp.zeros(shown, jnp.float32),))


def read(
    model: Transformer,
    interaction: Interaction,
    dynamic: DynamicContext,
    tokens: Int[Array, "batch tokens"],
    *,
    lengths: Int[Array, " batch"] | None = None,
    shift: Float[Array, ""] | float = 0.0,
) -> DynamicRead:
    """Reads a chunk behind what is left.

    Args:
      lengths: tokens that are not padding, which is at the right end.
      shift: is added to beta: below 0 more is dropped than in training, above 0 less.
    """
    context, layers = dynamic.context, model.config.n_layers
    there = jnp.ones(tokens.shape, bool) if lengths is None else first_tokens(lengths, tokens.shape[1])
    h = model.embed(tokens)
    positions = count_positions(h.shape[:2], there, context.position)
    rope = rope_tables(positions, model.frequencies())
    gates = {**interaction, "beta": interaction["beta"] + shift}
    weights = sliceable(model.layers.tree())

    def layer(h: Array, each: dict[str, Any]) -> tuple[Array, tuple[Array, ...]]:
        w = readable(each["weights"] if "weights" in each else pick_layer(weights, each["number"]))
        p = model.project(w, h, rope)
        own = project(each["gates"], p.x)
        run: Entries = each["run"]
        slots = run.k.shape[1]
        k, v, shows = (jnp.concatenate(pair, axis=1) for pair in ((run.k, p.k), (run.v, p.v), (each["shows"], own.k)))
        valid = jnp.concatenate([first_tokens(run.length[:, 0], slots), there], axis=1)
        scores = interaction_scores(own.q, shows, each["gates"]["beta"])
        left = survival(jnp.ones(valid.shape, jnp.float32), scores, None, start=slots, queries=there)
        grouped = p.q.reshape(*p.q.shape[:2], p.k.shape[2], -1, p.q.shape[-1])
        mixed = attend_block(grouped, (k, v, valid, left), (), jnp.int32(slots)).reshape(p.q.shape)
        seen = (left > 0) & valid[:, None] & earlier(left.shape[1:], slots)
        keep = (left[:, -1] > 0) & valid
        out = (p.k, p.v, own.k, keep[:, :slots], keep[:, slots:], jnp.sum(seen, axis=-1, dtype=jnp.int32))
        return model.finish(w, h, mixed), out

    outputs, first = [], 0
    for run, shows in zip(context.runs, dynamic.shows, strict=True):
        count = run.k.shape[0]
        part = slice(first, first + count)
        own = {name: value[part] for name, value in gates.items()}
        each: dict[str, Any] = {"number": first + jnp.arange(count), "run": run, "shows": shows, "gates": own}
        if count == layers:  # else weights are picked by number: slicing them first would copy them
            each["weights"] = weights
        h, out = lax.scan(layer, h, each)
        outputs.append(out)
        first += count
    k, v, shown, before, after, visible = zip(*outputs, strict=True)
    widest = max(run.capacity for run in context.runs)
    h = rms_norm(h, model.norm[...], model.config.norm_eps)
    last = jnp.maximum(jnp.where(there, positions, -1).max(axis=1) + 1, context.position)
    stored = None if lengths is None else there
    tail = kv.tail_of(context, tokens.shape[1])
    tail = kv.append(tail, jnp.concatenate(k), jnp.concatenate(v), stored, last, empty=True)
    return DynamicRead(
        h,
        candidates(tail, context),
        jnp.concatenate([in_one(dynamic.shows, widest), jnp.concatenate(shown)], axis=2),
        jnp.concatenate([in_one(before, widest), jnp.concatenate(after)], axis=2),
        jnp.concatenate(visible),
    )


def compacted(read: DynamicRead, capacities: int | Sequence[int]) -> DynamicContext:
    """What is left, gathered into static capacities, one or one a layer; they must hold `DynamicRead.needed`."""
    layers, batch, entries, heads = read.found.valid.shape
    keep = jnp.broadcast_to(jnp.swapaxes(read.keep, 0, 1)[:, :, None], (batch, layers, heads, entries))
    context = compact(read.found, keep, capacities)
    order = order_of(keep[:, :, :1])[:, :, 0, :, None]
    shows, first = [], 0
    for run in context.runs:
        part = slice(first, first + run.k.shape[0])
        shows.append(jnp.take_along_axis(read.shows[part], order[part, :, : run.capacity], axis=2))
        first += run.k.shape[0]
    return DynamicContext(context, tuple(shows))
