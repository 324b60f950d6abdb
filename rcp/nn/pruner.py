"""Scores, budget and guarantees -> exactly the tokens to keep, and the prompt that is really shorter for it.

A budget counts *context* tokens of the model that will read them. Instruction, question and answer are always read;
they and forced context tokens enter every sampler with logit +inf, padding with -inf. A segment has logit +inf only
where all of it is forced: of one that is forced in part, the forced tokens are kept, and the scores decide about the
rest. At every granularity exactly `min(max(budget, forced tokens), context tokens)` context tokens are kept:

* "token": the best tokens.
* "segment": whole segments in the order drawn, as far as the budget goes that forced tokens leave; the one that crosses
  it is cut at its end, or at its beginning (`cut`): then what is left of it ends as it was written, separator included.
* "two_stage": segments first, in the order drawn, until they hold `EXPAND` times the budget (the shot pruner of
  CoT-Influx, arXiv 2312.08901), then the best tokens of those, forced ones of all segments among them.

At "independent" there is no budget: segments and then their tokens are kept or not each by itself, as CoT-Influx does
(see `rcp.nn.independent`), so that `kept` varies and `asked` is only a note. `exact` is the granularity to use the same
scores with where a budget must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp import sampling
from rcp.nn import independent, layout
from rcp.nn.independent import SEGMENT_STREAM, TOKEN_STREAM
from rcp.types import Batch, Role

Granularity = Literal["token", "segment", "two_stage", "independent"]
Cut = Literal["end", "beginning"]
LARGEST = 1e29  # size of a score; `rcp.sampling` bounds logits there too
EXPAND = 2.0  # how much more than the budget the first of two stages lets through


class Scores(NamedTuple):
    """Logits of keeping, higher first. Only entries of context tokens and existing segments count."""

    tokens: Float[Array, "batch tokens"]
    segments: Float[Array, "batch segments"]


class Pruned(NamedTuple):
    """What was kept of each prompt, and the draw that decided it.

    Attributes:
      keep: bool [batch, tokens] over the whole prompt: instruction, question and answer True, padding False.
      kept: int32 [batch], context tokens kept. asked: int32 [batch], the budget.
      segment_rank: int32 [batch, segments], place in the order drawn; drawn: int32 [batch], how many were looked at.
      token_rank: int32 [batch, tokens], place in the order of the token draw (0 at granularity "segment").
      token_pool: bool [batch, tokens], context tokens that the token draw could take.
    """

    keep: Bool[Array, "batch tokens"]
    kept: Int[Array, " batch"]
    asked: Int[Array, " batch"]
    segment_rank: Int[Array, "batch segments"]
    drawn: Int[Array, " batch"]
    token_rank: Int[Array, "batch tokens"]
    token_pool: Bool[Array, "batch tokens"]


def _before(rank: Int[Array, "batch segments"], lengths: Int[Array, "batch segments"]) -> Int[Array, "batch segments"]:
    """Tokens in the segments drawn before each segment."""
    order = jnp.argsort(rank, axis=1)
    in_order = jnp.take_along_axis(lengths, order, axis=1)
    return jnp.take_along_axis(jnp.cumsum(in_order, axis=1, dtype=jnp.int32) - in_order, rank, axis=1)


def filling_order(rank: Int[Array, "batch segments"], batch: Batch, cut: Cut) -> Int[Array, "batch tokens"]:
    """Places of the context tokens, from 0, where a budget is filled with whole segments in the order of their `rank`.

    Within a segment the tokens come from the end that `cut` spares: what is left out of the last one is at the other.
    """
    lengths, inside = layout.segment_lengths(batch), layout.places(batch)
    if cut == "beginning":
        inside = layout.of_segment(lengths, batch) - 1 - inside
    return layout.of_segment(_before(rank, lengths), batch) + inside


def exact(granularity: Granularity) -> Granularity:
    """The granularity at which the same scores meet a budget."""
    return "two_stage" if granularity == "independent" else granularity


def segment_logits(scores: Scores, batch: Batch) -> Float[Array, "batch segments"]:
    """Segment logits with the guarantees: +inf where a segment is forced as a whole, -inf where there is none.

    Forced tokens of other segments are kept as tokens, and leave the choice among these segments to their scores.
    """
    exists, free = layout.segment_exists(batch), layout.free_lengths(batch)
    whole = exists & (free == 0)
    return jnp.where(whole, jnp.inf, jnp.where(exists, _finite(scores.segments), -jnp.inf))


def token_logits(scores: Scores, batch: Batch, pool: Bool[Array, "batch tokens"]) -> Float[Array, "batch tokens"]:
    """Token logits over the whole prompt with the guarantees: +inf for fixed and forced tokens, -inf out of `pool`."""
    return jnp.where(guaranteed(batch), jnp.inf, jnp.where(pool, _finite(scores.tokens), -jnp.inf))


def guaranteed(batch: Batch) -> Bool[Array, "batch tokens"]:
    """Tokens that are read whatever the scores: instruction, question, answer and forced context tokens."""
    context = layout.in_context(batch)
    return (~context & (batch.role != Role.PAD)) | (context & batch.forced)


def _finite(scores: Array) -> Array:
    """Infinite scores as very large ones: infinity is for guarantees alone, or the count would not be exact."""
    return jnp.clip(scores, -LARGEST, LARGEST)


def prune(
    scores: Scores,
    batch: Batch,
    budget: Int[Array, " batch"],
    *,
    granularity: Granularity,
    cut: Cut = "end",
    keys: Array | None = None,
) -> Pruned:
    """Keeps exactly the budget, but for granularity "independent" (see the module).

    Args:
      scores: of the pruner or of any policy.
      budget: context tokens to keep, int32 [batch], may be traced. More than there are keeps them all; fewer than are
        forced keeps the forced ones.
      cut: which end of the segment that crosses the budget is dropped; of no effect at other granularities.
      keys: one key an example [batch] to draw (Gumbel top-k, Plackett-Luce); None keeps the best, deterministically.
    """
    if granularity == "independent":
        return _independent(scores, batch, budget, keys)
    context, lengths = layout.in_context(batch), layout.segment_lengths(batch)
    forced = context & batch.forced
    fixed = guaranteed(batch) & ~context
    asked = budget.astype(jnp.int32)
    budget = jnp.clip(asked, _count(forced), _count(context))
    no_rank = jnp.zeros(batch.role.shape, jnp.int32)
    segment_rank = jnp.zeros(lengths.shape, jnp.int32)
    drawn = jnp.zeros_like(budget)
    pool = context

    if granularity != "token":
        segments = _draw(segment_logits(scores, batch), _count(lengths > 0), keys, SEGMENT_STREAM)
        segment_rank = segments.rank
        if granularity == "segment":
            place = filling_order(segment_rank, batch, cut)
            # Forced tokens first, then in the order of segments: a forced token behind the cut displaces the last.
            order = jnp.where(forced, -1.0, place.astype(jnp.float32))
            keep = sampling.top_k(jnp.where(context, -order, -jnp.inf), budget).mask | fixed
            # The free tokens of the segments looked at fill what forced ones leave of the budget.
            free, left = layout.free_lengths(batch), (budget - _count(forced))[:, None]
            drawn = _count((lengths > 0) & ((free == 0) | (_before(segment_rank, free) < left)))
            return Pruned(keep, _count(keep & context), asked, segment_rank, drawn, no_rank, keep & context)
        before = _before(segment_rank, lengths)
        limit = jnp.floor(EXPAND * budget.astype(jnp.float32)).astype(jnp.int32)
        drawn = _count((before < limit[:, None]) & (lengths > 0))
        # Segments drawn at all, each of them whole, and what must be kept of the others.
        pool = context & (layout.of_segment(before < limit[:, None], batch) | forced)

    tokens = _draw(token_logits(scores, batch, pool), budget + _count(fixed), keys, TOKEN_STREAM)
    return Pruned(tokens.mask, _count(tokens.mask & context), asked, segment_rank, drawn, tokens.rank, pool)


def _independent(scores: Scores, batch: Batch, asked: Int[Array, " batch"], keys: Array | None) -> Pruned:
    context = layout.in_context(batch)
    segments, tokens = independent.decide(
        segment_logits(scores, batch), token_logits(scores, batch, context), batch, keys
    )
    pool = context & (layout.of_segment(segments.mask, batch) | batch.forced)
    kept, drawn = _count(tokens.mask & context), _count(segments.mask)
    return Pruned(tokens.mask, kept, asked.astype(jnp.int32), segments.rank, drawn, tokens.rank, pool)


def _count(there: Bool[Array, "batch n"]) -> Int[Array, " batch"]:
    return jnp.sum(there, axis=1, dtype=jnp.int32)


def _draw(logits, k, keys, stream: int) -> sampling.Subset:
    if keys is None:
        return sampling.top_k(logits, k)
    return jax.vmap(lambda key, x, n: sampling.gumbel_top_k(jax.random.fold_in(key, stream), x, n))(keys, logits, k)


def log_prob(scores: Scores, batch: Batch, pruned: Pruned, *, granularity: Granularity) -> Float[Array, " batch"]:
    """Log-probability (nats) under `scores` of the draws behind `pruned`, Plackett-Luce of the ordered samples.

    Segments count as far as they were looked at: which ones those are is a function of the ordered draw, so the score
    function of this probability is that of anything computed from the mask. Of two stages it is the sum of both.
    At granularity "independent" it is that of the sets.
    """
    if granularity == "independent":
        by_segment, by_token, survivors = _decided(scores, batch, pruned)
        return independent.log_prob(by_segment, by_token, batch, survivors, pruned.keep)
    return _over_draws(sampling.log_prob, scores, batch, pruned, granularity)


def entropy(scores: Scores, batch: Batch, pruned: Pruned, *, granularity: Granularity) -> Float[Array, " batch"]:
    """One-sample unbiased estimate (nats) of the entropy of the draws behind `pruned`; see `rcp.sampling.entropy`."""
    if granularity == "independent":
        by_segment, by_token, survivors = _decided(scores, batch, pruned)
        return independent.entropy(by_segment, by_token, batch, survivors)
    return _over_draws(sampling.entropy, scores, batch, pruned, granularity)


def _decided(scores: Scores, batch: Batch, pruned: Pruned) -> tuple[Array, Array, Array]:
    """Logits of segments and tokens, and which segments survived, at granularity "independent"."""
    survivors = pruned.segment_rank < pruned.drawn[:, None]
    return segment_logits(scores, batch), token_logits(scores, batch, layout.in_context(batch)), survivors


def _over_draws(measure: Callable, scores: Scores, batch: Batch, pruned: Pruned, granularity: Granularity) -> Array:
    """`measure(logits, rank, k)` of the draw of segments, of that of tokens, or the sum of both."""
    total = jnp.zeros(batch.role.shape[0], jnp.float32)
    if granularity != "token":
        total += measure(segment_logits(scores, batch), pruned.segment_rank, pruned.drawn)
    if granularity != "segment":
        k = jnp.sum(pruned.keep, axis=1, dtype=jnp.int32)
        total += measure(token_logits(scores, batch, pruned.token_pool), pruned.token_rank, k)
    return total


def budget_of_rate(batch: Batch, rate: Float[Array, "*batch"] | float) -> Int[Array, " batch"]:
    """max(1, floor(rate * context tokens)), int32 [batch]; `rate` in (0, 1], a scalar or one an example, may be traced.

    An empty context gets 0.
    """
    return sampling.count_of_rate(layout.context_tokens(batch), rate)


def compact(batch: Batch, keep: Bool[Array, "batch tokens"], length: int) -> Batch:
    """The prompts with dropped tokens really removed, in order, padded at the right to the static `length`.

    `length` must hold the longest result; what does not fit is cut off. A `length` above the prompts' own adds nothing.
    """
    keep = keep & (batch.role != Role.PAD)
    order = jnp.argsort(~keep, axis=1, stable=True)[:, :length]
    there = jnp.take_along_axis(keep, order, axis=1)

    def gather(x: Array, empty: int | bool) -> Array:
        return jnp.where(there, jnp.take_along_axis(x, order, axis=1), jnp.asarray(empty, x.dtype))

    return batch._replace(
        tokens=gather(batch.tokens, 0),
        role=gather(batch.role, int(Role.PAD)),
        segment=gather(batch.segment, -1),
        forced=gather(batch.forced, False),
    )
