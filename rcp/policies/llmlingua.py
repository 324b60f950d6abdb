"""LLMLingua: the most perplexing demonstrations, then their tokens one block after another.

Jiang et al., "LLMLingua: Compressing Prompts for Accelerated Inference of Large Language Models", arXiv 2310.05736:

1. *Budget controller.* Demonstrations (segments) of the highest perplexity first, until they hold k = 2 times the
   budget.
2. *Iterative token-level compression.* What is left is cut into blocks of 100 tokens. Those of block j are judged by
   -log p(x_ji | x_j,<i, the compressed blocks before j), and the block keeps its share of the budget.

Departures: the model is the reader itself, not a small one aligned to it. Instruction and question are read whole, and
the context has all of the budget. A block keeps an exact number of tokens, its part of the budget in proportion to its
context tokens, in place of a threshold that meets the budget about; and `rcp.nn.pruner.prune`, at granularity
"two_stage", whose first stage is the budget controller, keeps just these tokens, and so exactly the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rcp import sampling
from rcp.nn.cache import KVCache
from rcp.nn.each_segment import each_segment
from rcp.nn.layout import context_tokens, in_context, prompt_lengths
from rcp.nn.pruner import Scores, compact, guaranteed, prune
from rcp.nn.reader import next_token
from rcp.policies.base import ReaderPolicy
from rcp.policies.perplexity import self_information
from rcp.types import Batch, Role

CACHE_PARTS = (4, 2, 1)
"""The compressed text is read in a cache of a quarter, half or all of the prompt's slots: the least that holds it."""
KEPT = 1e4  # nats above any self-information: tokens that the iteration kept stand before all others


class _Read(NamedTuple):
    """What the scan carries: the compressed text so far and its last hidden state, context tokens seen and kept."""

    cache: KVCache
    last: Float[Array, "batch dim"]
    seen: Int[Array, " batch"]
    kept: Int[Array, " batch"]


class _Block(NamedTuple):
    """Some tokens of the text to be compressed, [batch, block]: which are not padding, context, and kept anyway."""

    tokens: Int[Array, "batch block"]
    there: Bool[Array, "batch block"]
    context: Bool[Array, "batch block"]
    fixed: Bool[Array, "batch block"]


def segment_perplexity(model: Any, batch: Batch, length: int) -> Float[Array, "batch segments"]:
    """Log-perplexity of each segment read alone: mean of -log p over its tokens after the first, nats.

    `length` is static and holds the longest segment.
    """

    def value(segments: Batch) -> Float[Array, " batch"]:
        count, information = prompt_lengths(segments), self_information(model, segments)
        return jnp.sum(information, axis=1) / jnp.maximum(count - 1, 1).astype(jnp.float32)

    return each_segment(value, lambda inside: inside, batch, length)


def compress(
    model: Any, batch: Batch, pool: Bool[Array, "batch tokens"], budget: Int[Array, " batch"], block: int
) -> tuple[Bool[Array, "batch tokens"], Float[Array, "batch tokens"]]:
    """Iterative compression of the instruction, which is kept, and of the context tokens in `pool`.

    Each block is read twice behind the cache of the compressed text: whole, to be judged, and only what was kept, for
    the cache, so that what follows is judged by exactly the compressed text. Blocks that no example has are skipped.

    Returns:
      which context tokens are kept, and the self-information (nats) that decided; both [batch, tokens].
    """
    rows, tokens = batch.tokens.shape
    read = pool | (batch.role == Role.INSTRUCTION)
    count = -(-tokens // block)
    text = compact(batch, read, tokens)
    whole = (text.tokens, text.role != Role.PAD, in_context(text), guaranteed(text))

    def in_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, count * block - tokens)))
        return jnp.moveaxis(x.reshape(rows, count, block), 1, 0)

    pooled = jnp.maximum(jnp.sum(pool, axis=1, dtype=jnp.int32), 1)

    def step(past: _Read, part: _Block) -> tuple[_Read, tuple[Array, Array]]:
        states, _ = model.hidden(part.tokens, valid=part.there, cache=past.cache)
        before = jnp.concatenate([past.last[:, None], states[:, :-1]], axis=1)
        information, _ = next_token(model, before, part.tokens, part.there)
        first = (past.cache.length == 0)[:, None] & (jnp.arange(block) == 0)[None]
        information = jnp.where(first, 0.0, information)  # the first token of all has nothing before it
        seen = past.seen + _count(part.context)
        forced = _count(part.context & part.fixed)
        due = sampling.floor_of_share(budget, seen, pooled)
        share = jnp.clip(due - past.kept, forced, _count(part.context))
        logits = jnp.where(part.fixed, jnp.inf, jnp.where(part.there, information, -jnp.inf))
        keep = sampling.top_k(logits, share + _count(part.there & ~part.context)).mask
        states, cache = model.hidden(part.tokens, valid=keep, cache=past.cache)
        place = jnp.max(jnp.where(keep, jnp.arange(block)[None], -1), axis=1)[:, None]
        last = jnp.take_along_axis(states, jnp.maximum(place, 0)[..., None], axis=1)[:, 0]
        last = jnp.where(place >= 0, last, past.last)
        return _Read(cache, last, seen, past.kept + share), (keep, information)

    def skip(past: _Read, part: _Block) -> tuple[_Read, tuple[Array, Array]]:
        return past, (part.there, jnp.zeros(part.there.shape, jnp.float32))

    def behind(capacity: int) -> tuple[Array, Array]:
        """All blocks, the compressed text in a cache of so many slots."""
        none, last = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, model.config.d_model), jnp.float32)
        start, blocks = _Read(model.new_cache(rows, capacity), last, none, none), _Block(*map(in_blocks, whole))
        return jax.lax.scan(
            lambda past, part: jax.lax.cond(jnp.any(part.there), step, skip, past, part), start, blocks
        )[1]

    fixed = _count(read & ~pool) + _count(guaranteed(text) & in_context(text))
    longest = jnp.max(fixed + jnp.minimum(budget, _count(pool)))  # of the compressed texts, at most
    capacities = sorted({-(-count // part) * block for part in CACHE_PARTS})
    number = jnp.sum(longest + block > jnp.array(capacities[:-1], jnp.int32), dtype=jnp.int32)
    keep, information = jax.lax.switch(number, [partial(behind, capacity) for capacity in capacities])
    place = jnp.maximum(jnp.cumsum(read, axis=1, dtype=jnp.int32) - 1, 0)

    def of_prompt(blocks: Array) -> Array:
        return jnp.take_along_axis(jnp.moveaxis(blocks, 0, 1).reshape(rows, count * block), place, axis=1)

    return of_prompt(keep) & pool, jnp.where(pool, of_prompt(information), 0.0)


def _count(there: Bool[Array, "batch n"]) -> Int[Array, " batch"]:
    return jnp.sum(there, axis=1, dtype=jnp.int32)


@partial(jax.jit, static_argnums=(0, 3))
def _segments(graph: Any, state: Any, batch: Batch, length: int) -> Float[Array, "batch segments"]:
    return segment_perplexity(nnx.merge(graph, state), batch, length)


@partial(jax.jit, static_argnums=(0, 5))
def _scores(graph: Any, state: Any, batch: Batch, segments: Array, budget: Array, block: int) -> Scores:
    model = nnx.merge(graph, state)
    nothing = jnp.zeros(batch.tokens.shape, jnp.float32)
    pool = prune(Scores(nothing, segments), batch, budget, granularity="two_stage").token_pool
    budget = jnp.clip(budget.astype(jnp.int32), 0, context_tokens(batch))
    kept, information = compress(model, batch, pool, budget, block)
    return Scores(tokens=information + jnp.where(kept, KEPT, 0.0), segments=segments)


@dataclass(frozen=True)
class LLMLingua(ReaderPolicy):
    """See the module. `length` as in `segment_perplexity`, `block` as in `compress`.

    `seen`: the perplexities of a batch's segments, which no budget changes; see `looking_at`.
    """

    name = "llmlingua"
    granularity = "two_stage"
    needs_budget = True
    length: int = 0
    block: int = 100
    seen: Float[Array, "batch segments"] | None = None

    def looking_at(self, batch: Batch, *, anew: bool = False) -> LLMLingua:
        return replace(self, seen=jax.block_until_ready(_segments(self.graph, self.state, batch, self.length)))

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        assert budget is not None, "this policy's scores depend on the budget"
        segments = _segments(self.graph, self.state, batch, self.length) if self.seen is None else self.seen
        return _scores(self.graph, self.state, batch, segments, budget, self.block)
