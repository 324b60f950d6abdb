"""LongLLMLingua's idea: keep what the question makes likelier, of the segments that make the question likely.

Jiang et al., "LongLLMLingua: Accelerating and Enhancing LLMs in Long Context Scenarios via Prompt Compression", arXiv
2310.06839. Of a token x_i of a segment, the contrastive perplexity

    log p(x_i | question, x_<i) - log p(x_i | x_<i),

x_<i being the tokens before it in its segment; of a segment, the mean over the question's tokens of log p(question |
segment).

Departures: the model is the reader itself; segments are read apart, without the instruction and without the paper's
sentence that the answer is in the documents; the first token of a segment, which has nothing before it to be likely by,
gets 0; segments stay in their order, and the budget is one for all of them, spent as the pruner compared with spends
its own (at granularity "two_stage" coarse, then fine, as in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rcp.nn.each_segment import each_segment
from rcp.nn.layout import in_context, places
from rcp.nn.pruner import Scores
from rcp.nn.scorer import question_first
from rcp.policies.base import ReaderPolicy, spread_segments
from rcp.policies.perplexity import self_information
from rcp.types import Batch, Role


def _in_this_order(batch: Batch, order: Array) -> Batch:
    names = ("tokens", "role", "segment", "forced")
    return batch._replace(**{name: jnp.take_along_axis(getattr(batch, name), order, axis=1) for name in names})


def _of_tokens(rows: Float[Array, "batch segments row"], batch: Batch, first: Array) -> Float[Array, "batch tokens"]:
    """Each context token's value, from rows that hold its segment from place `first` [batch] on; 0 elsewhere."""
    place = jnp.minimum(places(batch) + first[:, None], rows.shape[2] - 1)
    index = jnp.maximum(batch.segment, 0) * rows.shape[2] + place
    flat = rows.reshape(rows.shape[0], -1)
    return jnp.where(in_context(batch), jnp.take_along_axis(flat, index, axis=1), 0.0)


def _likelihood(pieces: Batch, information: Float[Array, "batch tokens"]) -> Float[Array, " batch"]:
    """Mean log-probability of the question's tokens, nats; `information` as in `self_information`."""
    question = pieces.role == Role.QUESTION
    count = jnp.maximum(jnp.sum(question, axis=1, dtype=jnp.float32), 1.0)
    return -jnp.sum(jnp.where(question, information, 0.0), axis=1) / count


def contrast(model: Any, batch: Batch, length: int, *, whole: bool = False) -> Scores:
    """The two scores of the module, nats. `length` is static and holds the question with the longest segment.

    Two readings a segment, of all examples at a time: the segment and then the question, whose beginning is the segment
    alone, since the reader is causal; and the question and then the segment. Only the first where segments are kept
    `whole`: then tokens have the score of their segment.
    """

    def read(pieces: Batch) -> tuple[Array, Array]:
        information = self_information(model, pieces)
        row = jnp.pad(information, ((0, 0), (0, length - information.shape[1])))
        return row, _likelihood(pieces, information)

    def beside_question(prompts: Batch) -> tuple[Array, Array]:
        asks = prompts.role == Role.QUESTION
        return each_segment(read, lambda inside: inside | asks, prompts, length)

    alone, likely = beside_question(batch)
    if whole:
        return spread_segments(likely, batch)
    order, _ = question_first(batch)
    asked, _ = beside_question(_in_this_order(batch, order))
    size = jnp.sum(batch.role == Role.QUESTION, axis=1, dtype=jnp.int32)
    tokens = _of_tokens(alone, batch, jnp.zeros_like(size)) - _of_tokens(asked, batch, size)
    return Scores(tokens=jnp.where(places(batch) == 0, 0.0, tokens), segments=likely)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _scores(graph: Any, state: Any, batch: Batch, length: int, whole: bool) -> Scores:
    return contrast(nnx.merge(graph, state), batch, length, whole=whole)


@dataclass(frozen=True)
class Contrast(ReaderPolicy):
    """Question-conditioned perplexity under the reader; `length` and `whole` as in `contrast`."""

    name = "contrast"
    length: int = 0
    whole: bool = False

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.graph, self.state, batch, self.length, self.whole)
