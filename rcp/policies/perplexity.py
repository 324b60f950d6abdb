"""Selective Context's idea: keep what the model could not have guessed.

Li et al., "Compressing Context to Enhance Inference Efficiency of Large Language Models", arXiv 2310.06201: the
self-information -log p(token | tokens before it) under a causal language model, the high ones kept.

Departures: the model is the reader itself, the units are tokens or whole segments (mean over the segment's tokens)
rather than noun phrases, and a count of tokens replaces their percentile, so that the budget is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rcp.nn.layout import first_tokens, prompt_lengths, segment_means
from rcp.nn.pruner import Scores
from rcp.nn.reader import next_token
from rcp.policies.base import ReaderPolicy
from rcp.types import Batch


def self_information(model: Any, batch: Batch) -> Float[Array, "batch tokens"]:
    """-log p(token | tokens before it) in nats, float32 [batch, tokens]; `model` is a `rcp.nn.transformer.Transformer`.

    The first token, which has nothing before it, gets 0, and so does padding.
    """
    tokens = jnp.asarray(batch.tokens)
    lengths = prompt_lengths(batch)
    hidden = model.hidden(tokens, lengths=lengths)[:, :-1]
    surprise, _ = next_token(model, hidden, tokens[:, 1:], first_tokens(lengths, tokens.shape[1])[:, 1:])
    return jnp.pad(surprise, ((0, 0), (1, 0)))


@partial(jax.jit, static_argnums=0)
def _scores(graph: Any, state: Any, batch: Batch) -> Scores:
    values = self_information(nnx.merge(graph, state), batch)
    return Scores(tokens=values, segments=segment_means(values, batch))


@dataclass(frozen=True)
class Perplexity(ReaderPolicy):
    """Self-information under the reader."""

    name = "perplexity"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.graph, self.state, batch)
