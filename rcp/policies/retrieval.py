"""Retrieval by words: BM25 with the question as the query."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log1p

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rcp.nn.pruner import Scores
from rcp.policies.base import Policy, spread_segments
from rcp.types import Batch, Role

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The text's words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def bm25_scores(segments: Sequence[str], question: str) -> np.ndarray:
    """BM25 (Okapi) of each segment for the question, float64 [segments]; the segments of the example are the corpus.

    A word that is in more than half of the N segments has a negative idf, log((N - n + .5) / (n + .5)) for n of them,
    for which rank_bm25 takes a quarter of the average. Of few segments the average itself may be 0 or less, so that a
    segment would lose by having the question's word: then every idf is Lucene's, log(1 + (N - n + .5) / (n + .5)),
    which is positive.
    """
    from rank_bm25 import BM25Okapi

    corpus = [words(segment) for segment in segments]
    if not any(corpus):
        return np.zeros(len(segments))
    found = BM25Okapi(corpus)
    if found.average_idf <= 0:
        counts = Counter(word for segment in corpus for word in set(segment))
        found.idf = {word: log1p((len(corpus) - n + 0.5) / (n + 0.5)) for word, n in counts.items()}
    return np.asarray(found.get_scores(words(question)))


@dataclass(frozen=True)
class Bm25(Policy):
    """Segments by BM25, earlier ones first where they tie. `decode` gives the text of token ids. Runs on the host.

    Scores are ranks, since only their order matters and equal scores must not be decided by rounding.
    """

    name = "bm25"
    granularity = "segment"
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        ranks = np.zeros(batch.support.shape, np.float32)
        for row, weight in enumerate(np.asarray(batch.weight)):
            if weight > 0:
                segments, question = self._texts(batch, row)
                order = np.argsort(-bm25_scores(segments, question), kind="stable")
                ranks[row, order] = -np.arange(len(order))
        return spread_segments(jnp.asarray(ranks), batch)

    def _texts(self, batch: Batch, row: int) -> tuple[list[str], str]:
        assert self.decode is not None
        tokens, role, segment = (np.asarray(x[row]) for x in (batch.tokens, batch.role, batch.segment))
        segments = [self.decode(tokens[segment == s].tolist()) for s in range(segment.max() + 1)]
        return segments, self.decode(tokens[role == Role.QUESTION].tolist())
