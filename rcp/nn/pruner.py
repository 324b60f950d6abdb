"""Scores, budget and guarantees -> exactly the tokens to keep, and the prompt that is really shorter for it.

A budget counts *context* tokens of the model that will read them. Instruction, question and answer are always read;
they and forced context tokens enter every sampler with logit +inf, padding with -inf. At every granularity exactly
`min(max(budget, forced tokens), context tokens)` context tokens are kept:

* "token": the best tokens.
* "segment": whole segments in the order drawn; the one that crosses the budget keeps its first tokens.
* "two_stage": segments first, in the order drawn, until they hold `EXPAND` times the budget (the shot pruner of
  CoT-Influx, arXiv 2312.08901), then the best tokens of those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp import sampling
from rcp.types import Batch, Role

Granularity = Literal["token", "segment", "two_stage"]
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


class _Layout(NamedTuple):
    """What the budget needs to know of a batch."""

    context: Bool[Array, "batch tokens"]
    fixed: Bool[Array, "batch tokens"]  # instruction, question, answer
    forced: Bool[Array, "batch tokens"]
    member: Bool[Array, "batch tokens segments"]
    lengths: Int[Array, "batch segments"]
    offset: Int[Array, "batch tokens"]  # place of a token in its segment


def _layout(batch: Batch) -> _Layout:
    context = batch.role == Role.CONTEXT
    fixed = (batch.role != Role.CONTEXT) & (batch.role != Role.PAD)
    segments = jnp.arange(batch.support.shape[1], dtype=jnp.int32)[None, None]
    member = (batch.segment[..., None] == segments) & context[..., None]
    lengths = jnp.sum(member, axis=1, dtype=jnp.int32)
    start = jnp.argmax(member, axis=1).astype(jnp.int32)
    place = jnp.arange(batch.role.shape[1], dtype=jnp.int32)[None]
    offset = place - jnp.take_along_axis(start, jnp.maximum(batch.segment, 0), axis=1)
    return _Layout(context, fixed, context & batch.forced, member, lengths, jnp.where(context, offset, 0))


def _before(rank: Int[Array, "batch segments"], lengths: Int[Array, "batch segments"]) -> Int[Array, "batch segments"]:
    """Tokens in the segments drawn before each segment."""
    order = jnp.argsort(rank, axis=1)
    in_order = jnp.take_along_axis(lengths, order, axis=1)
    return jnp.take_along_axis(jnp.cumsum(in_order, axis=1, dtype=jnp.int32) - in_order, rank, axis=1)


def segment_logits(scores: Scores, batch: Batch) -> Float[Array, "batch segments"]:
    """Segment logits with the guarantees: +inf where a segment holds a forced token, -inf where there is none."""
    layout = _layout(batch)
    forced = jnp.any(layout.member & layout.forced[..., None], axis=1)
    return jnp.where(forced, jnp.inf, jnp.where(layout.lengths > 0, _finite(scores.segments), -jnp.inf))


def token_logits(scores: Scores, batch: Batch, pool: Bool[Array, "batch tokens"]) -> Float[Array, "batch tokens"]:
    """Token logits over the whole prompt with the guarantees: +inf for fixed and forced tokens, -inf out of `pool`."""
    layout = _layout(batch)
    return jnp.where(layout.fixed | layout.forced, jnp.inf, jnp.where(pool, _finite(scores.tokens), -jnp.inf))


def _finite(scores: Array) -> Array:
    """Infinite scores as very large ones: infinity is for guarantees alone, or the count would not be exact."""
    return jnp.clip(scores, -LARGEST, LARGEST)


def prune(
    scores: Scores,
    batch: Batch,
    budget: Int[Array, " batch"],
    *,
    granularity: Granularity,
    keys: Array | None = None,
) -> Pruned:
    """Keeps exactly the budget (see the module).

    Args:
      scores: of the pruner or of any policy.
      budget: context tokens to keep, int32 [batch], may be traced. More than there are keeps them all; fewer than are
        forced keeps the forced ones.
      keys: one key an example [batch] to draw (Gumbel top-k, Plackett-Luce); None keeps the best, deterministically.
    """
    layout = _layout(batch)
    count = jnp.sum(layout.context, axis=1, dtype=jnp.int32)
    asked = budget.astype(jnp.int32)
    budget = jnp.clip(asked, jnp.sum(layout.forced, axis=1, dtype=jnp.int32), count)
    no_rank = jnp.zeros(batch.role.shape, jnp.int32)
    segment_rank = jnp.zeros(layout.lengths.shape, jnp.int32)
    drawn = jnp.zeros_like(budget)
    pool = layout.context

    if granularity != "token":
        segments = _draw(segment_logits(scores, batch), jnp.sum(layout.lengths > 0, axis=1, dtype=jnp.int32), keys, 0)
        segment_rank = segments.rank
        before = _before(segment_rank, layout.lengths)
        limit = budget if granularity == "segment" else jnp.floor(EXPAND * budget.astype(jnp.float32)).astype(jnp.int32)
        drawn = jnp.sum((before < limit[:, None]) & (layout.lengths > 0), axis=1, dtype=jnp.int32)
        place = jnp.take_along_axis(before, jnp.maximum(batch.segment, 0), axis=1) + layout.offset
        pool = layout.context & (place < limit[:, None] if granularity == "segment" else _inside(before, limit, batch))
    if granularity == "segment":
        # Forced tokens first, then by place in the order of segments: a forced token behind the cut displaces the last.
        order = jnp.where(layout.forced, -1.0, place.astype(jnp.float32))
        keep = sampling.top_k(jnp.where(layout.context, -order, -jnp.inf), budget).mask | layout.fixed
        return Pruned(keep, _count(keep, layout), asked, segment_rank, drawn, no_rank, pool)

    k = budget + jnp.sum(layout.fixed, axis=1, dtype=jnp.int32)
    tokens = _draw(token_logits(scores, batch, pool), k, keys, 1)
    return Pruned(tokens.mask, _count(tokens.mask, layout), asked, segment_rank, drawn, tokens.rank, pool)


def _inside(before, limit, batch) -> Bool[Array, "batch tokens"]:
    """Tokens of the segments that were drawn at all, each of them whole."""
    return jnp.take_along_axis(before < limit[:, None], jnp.maximum(batch.segment, 0), axis=1)


def _count(keep, layout: _Layout) -> Int[Array, " batch"]:
    return jnp.sum(keep & layout.context, axis=1, dtype=jnp.int32)


def _draw(logits, k, keys, stream: int) -> sampling.Subset:
    if keys is None:
        return sampling.top_k(logits, k)
    return jax.vmap(lambda key, x, n: sampling.gumbel_top_k(jax.random.fold_in(key, stream), x, n))(keys, logits, k)


def log_prob(scores: Scores, batch: Batch, pruned: Pruned, *, granularity: Granularity) -> Float[Array, " batch"]:
    """Log-probability (nats) under `scores` of the draws behind `pruned`, Plackett-Luce of the ordered samples.

    Segments count as far as they were looked at: which ones those are is a function of the ordered draw, so the score
    function of this probability is that of anything computed from the mask. Of two stages it is the sum of both.
    """
    return _over_draws(sampling.log_prob, scores, batch, pruned, granularity)


def entropy(scores: Scores, batch: Batch, pruned: Pruned, *, granularity: Granularity) -> Float[Array, " batch"]:
    """One-sample unbiased estimate (nats) of the entropy of the draws behind `pruned`; see `rcp.sampling.entropy`."""
    return _over_draws(sampling.entropy, scores, batch, pruned, granularity)


def _over_draws(measure: Callable, scores: Scores, batch: Batch, pruned: Pruned, granularity: Granularity) -> Array:
    """`measure(logits, rank, k)` of the draw of segments, of that of tokens, or the sum of both."""
    total = jnp.zeros(batch.role.shape[0], jnp.float32)
    if granularity != "token":
        total += measure(segment_logits(scores, batch), pruned.segment_rank, pruned.drawn)
    if granularity != "segment":
        k = jnp.sum(pruned.keep, axis=1, dtype=jnp.int32)
        total += measure(token_logits(scores, batch, pruned.token_pool), pruned.token_rank, k)
    return total


def relax(
    scores: Scores,
    batch: Batch,
    budget: Int[Array, " batch"],
    *,
    granularity: Granularity,
    temperature: float,
    method: Literal["threshold", "successive", "straight_through", "sigmoid"],
    keys: Array | None = None,
) -> Float[Array, "batch tokens"]:
    """A keep-mask over the prompt that is differentiable in the scores: 1 on fixed and forced tokens, 0 on padding.

    "threshold" and "successive" are `rcp.sampling.relaxed_top_k`; "straight_through" takes its value from the hard draw
    and its gradient from "threshold"; "sigmoid" gates each unit by itself, so that the budget holds only on average and
    a `budget` objective must push it there. At segment granularity all tokens of a segment share one value, and k is
    the number of segments that the hard draw looks at; "two_stage" is relaxed as tokens.

    Args:
      keys: one key an example; None for no noise. Gumbel noise, that of the hard draw, or for "sigmoid" logistic noise
        (the binary concrete distribution, arXiv 1611.00712): at a low temperature a unit is kept with probability
        sigmoid(logit).
    """
    layout = _layout(batch)
    by_segment = granularity == "segment"
    logits = segment_logits(scores, batch) if by_segment else token_logits(scores, batch, layout.context)
    hard = prune(scores, batch, budget, granularity=granularity if by_segment else "token", keys=keys)
    noisy = logits
    if keys is not None:
        stream = 0 if by_segment else 1
        noise = jax.vmap(lambda key: sampling.gumbel_noise(jax.random.fold_in(key, stream), logits.shape[1:]))(keys)
        if method == "sigmoid":  # a difference of two Gumbel variables is logistic
            noise -= jax.vmap(lambda key: sampling.gumbel_noise(jax.random.fold_in(key, 2), logits.shape[1:]))(keys)
        noisy = logits + noise
    if method == "sigmoid":
        finite = jnp.isfinite(logits)
        soft = jnp.where(finite, jax.nn.sigmoid(jnp.where(finite, noisy, 0.0) / temperature), 0.0)
        soft = jnp.where(logits == jnp.inf, 1.0, soft)
    else:
        k = hard.drawn if by_segment else jnp.sum(hard.keep, axis=1, dtype=jnp.int32)
        relaxed = "successive" if method == "successive" else "threshold"
        soft = sampling.relaxed_top_k(noisy, k, temperature, method=relaxed)
    if by_segment:
        soft = jnp.take_along_axis(soft, jnp.maximum(batch.segment, 0), axis=1)
    if method == "straight_through":
        soft = sampling.straight_through(hard.keep.astype(jnp.float32), soft)
    return jnp.where(layout.fixed | layout.forced, 1.0, jnp.where(layout.context, soft, 0.0))


def budget_of_rate(batch: Batch, rate: Float[Array, "*batch"] | float) -> Int[Array, " batch"]:
    """max(1, floor(rate * context tokens)), int32 [batch]; `rate` in (0, 1], a scalar or one an example, may be traced.

    An empty context gets 0. The factor and the 1e-4 keep a product that is whole in exact arithmetic (0.29 * 100,
    0.13 * 25,700) from falling below it in float32.
    """
    total = jnp.sum(batch.role == Role.CONTEXT, axis=1, dtype=jnp.int32)
    product = jnp.asarray(rate, jnp.float32) * total.astype(jnp.float32)
    budget = jnp.floor(product * (1 + 2**-22) + 1e-4).astype(jnp.int32)
    return jnp.clip(budget, jnp.minimum(1, total), total)


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
