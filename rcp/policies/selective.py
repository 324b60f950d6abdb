"""Selective Context with phrases: keep whole phrases that the model could not have guessed.

Li et al., "Compressing Context to Enhance Inference Efficiency of Large Language Models", arXiv 2310.06201: the
self-information -log p(token | tokens before it) under a causal language model, averaged over each lexical unit (there
a noun phrase), the high ones kept. `rcp.policies.perplexity` is the version whose units are tokens or segments.

Departures: the model is the reader itself; phrases come from a few rules rather than spaCy's noun chunks: one ends
behind punctuation (signs such as + and % are words), before a function word that follows another word, and with its
segment; and a count of tokens replaces the percentile, so that the budget is exact and may cut the last phrase, which
keeps its first tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rcp.nn.layout import in_context, segment_means
from rcp.nn.pruner import Scores
from rcp.policies.base import ReaderPolicy
from rcp.policies.perplexity import self_information
from rcp.types import Batch

_WORDS = (
    "a an the this that these those each every some any no and or but nor so yet if because although while when where "
    "who which what whose how than then as at by for from in into of off on onto out over per since through to under "
    "until up upon with without about after against among before behind between during is are was were be been has "
    "have had do does did will would can could shall should may might must not"
)
FUNCTION_WORDS = frozenset(_WORDS.split())
_PIECE = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’]\w+)*|[^\w\s]|\n+")  # numbers, words, signs, line ends
_ENDS = frozenset('.,;:!?…()[]{}"“”«»—')


def phrase_starts(text: str) -> list[int]:
    """Where the phrases of a text begin: character offsets of their first words, ascending."""
    starts: list[int] = []
    begins, behind_content = True, False
    for piece in _PIECE.finditer(text):
        word = piece.group()
        if word in _ENDS or word[0] == "\n":  # it goes with the phrase before it
            begins = True
            continue
        function = word.lower() in FUNCTION_WORDS
        if begins or (function and behind_content):
            starts.append(piece.start())
        begins, behind_content = False, not function
    return starts


def phrase_numbers(texts: Sequence[str]) -> np.ndarray:
    """The number of each token's phrase in its segment, from 0, int32 [tokens]; `texts` are the tokens' own texts.

    A token belongs to the phrase of its first character that is not white space. Before the first phrase it is 0.
    """
    ends = np.cumsum([len(text) for text in texts])
    firsts = [end - len(text.lstrip() or text[-1:]) for end, text in zip(ends, texts)]
    return np.maximum(np.searchsorted(phrase_starts("".join(texts)), firsts, side="right") - 1, 0).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _scores(graph: Any, state: Any, batch: Batch, phrase: Int[Array, "batch tokens"]) -> Scores:
    information = self_information(nnx.merge(graph, state), batch)
    tokens = jax.vmap(rank_phrases)(information, phrase, in_context(batch))
    return Scores(tokens=tokens, segments=segment_means(information, batch))


def rank_phrases(
    information: Float[Array, " tokens"], phrase: Int[Array, " tokens"], there: Array
) -> Float[Array, " tokens"]:
    """Scores by which whole phrases come in the order of their mean information, and their tokens in that of the text.

    `phrase` ascends over the tokens that are `there` (bool [tokens]); the scores of others come last.
    """
    count = len(phrase)
    number = jnp.where(there, phrase, count - 1)
    total = jax.ops.segment_sum(jnp.where(there, information, 0.0), number, count)
    size = jax.ops.segment_sum(there.astype(jnp.float32), number, count)
    mean = (total / jnp.maximum(size, 1.0))[number]
    # Ties between phrases go to the earlier one: the sort is stable and phrases stand side by side.
    order = jnp.argsort(jnp.where(there, -mean, jnp.inf), stable=True)
    return -jnp.zeros(count, jnp.float32).at[order].set(jnp.arange(count, dtype=jnp.float32))


@dataclass(frozen=True)
class Selective(ReaderPolicy):
    """Phrases by their mean self-information. `decode` gives the text of token ids; phrases are found on the host."""

    name = "selective"
    granularity = "token"
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.graph, self.state, batch, jnp.asarray(self.phrases(batch)))

    def phrases(self, batch: Batch) -> Int[np.ndarray, "batch tokens"]:
        """The number of each context token's phrase in its prompt, ascending; 0 elsewhere and in rows of weight 0."""
        assert self.decode is not None
        tokens, segment = np.asarray(batch.tokens), np.asarray(batch.segment)
        numbers = np.zeros(tokens.shape, np.int32)
        text = {int(token): self._text(int(token)) for token in np.unique(tokens)}
        for row in np.flatnonzero(np.asarray(batch.weight) > 0):
            first = 0
            for s in range(segment[row].max() + 1):
                inside = segment[row] == s
                if inside.any():
                    found = phrase_numbers([text[int(token)] for token in tokens[row, inside]])
                    numbers[row, inside] = first + found
                    first += found[-1] + 1
        return numbers

    def _text(self, token: int) -> str:
        """Of a token within a text: at its beginning some decoders drop the space."""
        assert self.decode is not None
        return self.decode([token, token])[len(self.decode([token])) :]
