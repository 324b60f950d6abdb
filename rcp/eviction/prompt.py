"""Reading a prompt in chunks, and pruning what was read.

A chunk sees the cache of what came before it and itself, so that no array has prompt times prompt scores. The chunks
of a prompt are read by at most `GROUPS` compiled bodies, which differ in how much of the cache they look at; chunks
behind the last token of all examples are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rcp.eviction import statistics
from rcp.eviction.allotment import Allotment, layer_budgets
from rcp.eviction.base import EvictionPolicy, Needs, Seen, Statistics
from rcp.eviction.compaction import Candidates, candidates, compact
from rcp.eviction.reconstruction import Repeat, reconstruct
from rcp.eviction.select import guarantees, select
from rcp.nn.cache import Context, KVCache
from rcp.nn.chunk import last_states, read_chunk
from rcp.nn.transformer import Transformer
from rcp.sampling import Subset

CHUNK = 256
LONG = 2048  # tokens from which chunks are twice as long: fewer, and better used, passes over the weights
GROUPS = 8


class ReadPrompt(NamedTuple):
    """A prompt that was read.

    Attributes:
      logits: after each example's last token.
      cache: of all its tokens, the padding left out.
      question: which entries are of the question; all False where it was not said.
      statistics: what was gathered, stacked over layers.
    """

    logits: Float[Array, "batch vocab"]
    cache: KVCache
    question: Bool[Array, "batch entries"]
    statistics: Statistics


@dataclass(frozen=True)
class Eviction:
    """How a cache is pruned. Static: every other one is compiled anew, budgets are not part of it.

    Attributes:
      allotment: None takes the policy's own.
      sinks, recent: first and last entries of every head that are kept whatever the scores, within the budget.
      repack: positions are counted anew without gaps.
      most: static bound on the entries that a head keeps; see `select`.
    """

    policy: EvictionPolicy
    allotment: Allotment | None = None
    sinks: int = 0
    recent: int = 0
    repack: bool = False
    most: int | None = None

    @property
    def shared(self) -> Allotment:
        return self.policy.allotment if self.allotment is None else self.allotment


def read_prompt(
    model: Transformer,
    tokens: Int[Array, "batch tokens"],
    *,
    valid: Bool[Array, "batch tokens"] | None = None,
    question: Bool[Array, "batch tokens"] | None = None,
    needs: Needs | None = None,
    chunk: int | None = None,
    repeat: Repeat | None = None,
) -> ReadPrompt:
    """Reads prompts, padded at either end, in chunks of a static length.

    Args:
      needs: what to gather; nothing where None.
      chunk: tokens of a chunk; None: `CHUNK`, or twice as many from `LONG` tokens on.
      repeat: how the prompt is repeated, where `needs.reconstruction`.
    """
    needs = Needs() if needs is None else needs
    batch, width = tokens.shape
    if chunk is None:
        chunk = CHUNK if width < LONG else 2 * CHUNK
    chunk = min(chunk, width)
    chunks = -(-width // chunk)
    there = jnp.ones(tokens.shape, bool) if valid is None else valid
    extra = ((0, 0), (0, chunks * chunk - width))
    tokens, there = jnp.pad(tokens, extra), jnp.pad(there, extra)
    observe = statistics.observer(needs)
    last = jnp.max(jnp.where(there, jnp.arange(chunks * chunk)[None] + 1, 0))
    used = (last.astype(jnp.int32) + chunk - 1) // chunk
    state = (
        model.new_cache(batch, chunks * chunk),
        statistics.start(needs, model, batch, chunks * chunk),
        jnp.zeros((batch, model.config.d_model), jnp.float32),
    )
    size = -(-chunks // GROUPS)
    for first in range(0, chunks, size):
        end = min(first + size, chunks)

        def step(number: Array, state: tuple, slots: int = (end - 1) * chunk) -> tuple:
            cache, gathered, states = state
            part, seen = (lax.dynamic_slice_in_dim(x, number * chunk, chunk, axis=1) for x in (tokens, there))
            h, cache, gathered = read_chunk(
                model, part, cache, valid=seen, slots=slots, observe=observe, observed=gathered
            )
            return cache, gathered, last_states(h, seen, states)

        state = lax.fori_loop(first, jnp.minimum(end, used), step, state)
    cache, gathered, states = state
    order = jnp.argsort(~there, axis=1, stable=True)  # from slot to token
    if needs.reconstruction:
        if repeat is None:
            raise ValueError("a policy that reads the prompt twice needs `repeat`: how the model is asked to repeat it")
        again = reconstruct(model, cache, jnp.take_along_axis(tokens, order, axis=1), repeat)
        gathered = gathered._replace(reconstruction=again)
    asked = jnp.zeros(there.shape, bool) if question is None else jnp.pad(question, extra) & there
    return ReadPrompt(model.logits(states), cache, jnp.take_along_axis(asked, order, axis=1), gathered)


def scores(
    model: Transformer,
    found: Candidates,
    gathered: Statistics,
    policy: EvictionPolicy,
    *,
    question: Bool[Array, "batch entries"] | None = None,
    budget: Int[Array, "batch layers"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Float[Array, "batch layers kv_heads entries"]:
    """A policy's scores of all layers, one layer after the other.

    Args:
      gathered: statistics of the entries, stacked over layers.
      budget: entries that a head of each layer may keep.
    """
    frequencies = model.frequencies()
    layers = found.k.shape[0]

    @jax.checkpoint  # where scores are learned: what a network sees of an entry is ten times the entry
    def of_layer(part: tuple) -> Array:
        k, v, position, valid, gathered, layer, budget = part
        seen = Seen(k, v, position, valid, found.next, question, gathered, frequencies, layer)
        return policy.scores(seen, budget=budget, keys=keys).astype(jnp.float32)

    budgets = None if budget is None else budget.T
    numbers = jnp.arange(layers, dtype=jnp.int32)
    each = (found.k, found.v, found.position, found.valid, gathered, numbers, budgets)
    return jnp.moveaxis(lax.map(of_layer, each), 0, 1)


class Weighed(NamedTuple):
    """Entries with all that decides which of them are kept, as `rcp.eviction.select.select` takes it.

    Attributes:
      found: the entries that there are, in reading order.
      question: those of the question, kept beside the budget; None: there is none.
    """

    found: Candidates
    valid: Bool[Array, "batch layers kv_heads entries"]
    forced: Bool[Array, "batch layers kv_heads entries"]
    scores: Float[Array, "batch layers kv_heads entries"]
    budgets: Int[Array, "batch layers"]
    question: Bool[Array, "batch layers kv_heads entries"] | None = None

    def subset(
        self, allotment: Allotment, *, most: int | None = None, drawn: Key[Array, " batch"] | None = None
    ) -> Subset:
        """The best of them, or what is `drawn` by their scores (one key an example). `most`: as in `select`."""
        return select(
            self.scores,
            self.budgets,
            valid=self.valid,
            forced=self.forced,
            beside=self.question,
            allotment=allotment,
            most=most,
            keys=drawn,
        )


def weigh(
    model: Transformer,
    found: Candidates,
    gathered: Statistics,
    eviction: Eviction,
    budget: Int[Array, " batch"],
    limit: Int[Array, " batch"],
    *,
    question: Bool[Array, "batch entries"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Weighed:
    """What the policy makes of entries.

    Args:
      gathered, question, keys: as in `scores`.
      budget: entries that a head keeps, the mean over layers and heads. limit: no layer gets more, mean over its heads.
    """
    valid = jnp.moveaxis(found.valid, (0, 3), (1, 2))  # [batch, layers, kv_heads, entries]
    asked = None if question is None else jnp.broadcast_to(question[:, None, None], valid.shape) & valid
    budgets = layer_budgets(eviction.shared, budget, limit, valid.shape[1])
    keys = keys if eviction.policy.draws else None
    by_policy = scores(model, found, gathered, eviction.policy, question=question, budget=budgets, keys=keys)
    own = valid if asked is None else valid & ~asked
    forced = guarantees(own, sinks=eviction.sinks, recent=eviction.recent)
    return Weighed(found, valid, forced, by_policy, budgets, asked)


class Kept(NamedTuple):
    """Which entries are kept, and how many of the context a head of each layer was to keep, the mean over heads."""

    keep: Bool[Array, "batch layers kv_heads entries"]
    budget: Int[Array, "batch layers"]


def choose(
    model: Transformer,
    read: ReadPrompt,
    eviction: Eviction,
    budget: Int[Array, " batch"],
    *,
    forced: Bool[Array, "batch entries"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Kept:
    """Which entries of a prompt to keep: exactly the budget of its context, and all of its question.

    Args:
      budget: entries of the context that a head keeps, the mean over layers and heads (`context_budget`); traced.
      forced: entries that every head keeps, within the budget.
      keys: one an example, where the policy draws.
    """
    tokens = context_entries(read)
    if not eviction.policy.swept:
        budget = tokens
    found, asked = candidates(read.cache), read.question
    w = weigh(model, found, read.statistics, eviction, budget, tokens, question=asked, keys=keys)
    if forced is not None:
        w = w._replace(forced=w.forced | forced[:, None, None])
    return Kept(w.subset(eviction.shared, most=eviction.most).mask, w.budgets)


def context_entries(read: ReadPrompt) -> Int[Array, " batch"]:
    """Tokens of each prompt that are not of the question."""
    slots = jnp.arange(read.cache.capacity, dtype=jnp.int32)[None]
    return jnp.sum((slots < read.cache.length[:, None]) & ~read.question, axis=1, dtype=jnp.int32)


def taken_back(read: ReadPrompt, kept: Kept, count: int | Int[Array, ""]) -> tuple[ReadPrompt, Kept]:
    """The prompt and what is kept of it without its last `count` tokens, which may then be read once more."""
    cache = read.cache._replace(length=read.cache.length - count, position=read.cache.position - count)
    there = jnp.arange(cache.capacity, dtype=jnp.int32)[None] < cache.length[:, None]
    return read._replace(cache=cache), kept._replace(keep=kept.keep & there[:, None, None])


def prune(
    model: Transformer, read: ReadPrompt, kept: Kept, capacities: int | Sequence[int], *, repack: bool = False
) -> Context:
    """What is left of the cache, gathered; see `compact`."""
    return compact(candidates(read.cache), kept.keep, capacities, repack=repack, frequencies=model.frequencies())
