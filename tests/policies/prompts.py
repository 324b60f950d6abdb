"""What the tests of policies that ask the reader share: a tiny reader, prompts of random tokens, and a few checks."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from rcp.nn.pruner import budget_of_rate, prune
from rcp.policies import Policy
from rcp.types import Batch, Role
from tests.tiny import Prompt, batch_of, tiny_model

MODEL = tiny_model()
PROMPTS = (
    Prompt((4, 3, 5, 2)),
    Prompt((1, 6, 2, 3, 2), instruction=0, question=4, answer=2),
    Prompt((7, 4), instruction=3, answer=3),
)
SEGMENTS = 6
KEY = jax.random.key(0)
PRUNE = jax.jit(prune, static_argnames="granularity")


def prompts(length: int = 32) -> Batch:
    return batch_of(PROMPTS, length, SEGMENTS)


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    return jax.tree.map(lambda x: x[np.asarray(rows)], batch)


@jax.jit
def _log_probs(tokens):
    return jax.nn.log_softmax(MODEL(tokens), axis=-1)


def log_probs(tokens: np.ndarray) -> np.ndarray:
    """log p(next token) after each of `tokens`, [tokens, vocab], by the tiny reader, one text at a time.

    The reader is causal: what fills the row up to a length that is compiled once makes no difference.
    """
    filled = np.zeros((1, 48), np.int32)
    filled[0, : len(tokens)] = tokens
    return np.asarray(_log_probs(filled))[0, : len(tokens)]


def spends_exactly(policy: Policy, batch: Batch, rate: float, granularity="segment") -> list[np.ndarray]:
    """The places (0 the first of the context) that the policy keeps of each prompt, their number checked."""
    budget = budget_of_rate(batch, rate)
    scores = policy.scores(batch, key=KEY)
    keep = np.asarray(PRUNE(scores, batch, budget, granularity=policy.granularity or granularity).keep)
    kept = [np.flatnonzero(row[role == Role.CONTEXT]) for row, role in zip(keep, batch.role)]
    assert [len(places) for places in kept] == np.asarray(budget).tolist()
    return kept
