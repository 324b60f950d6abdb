"""The problems of `experiments.estimators`, and their exact gradients by enumeration in float64 numpy.

Nothing here comes from `rcp`, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class Problem(NamedTuple):
    """Keep `keep` of `tokens`; `seed` draws logits, reward and samples."""

    tokens: int
    keep: int
    seed: int

    def arrays(self) -> tuple[np.ndarray, np.float32, np.ndarray, np.ndarray]:
        """float32 logits [tokens], c, b [tokens], A [tokens, tokens]: standard normal, A symmetric and over sqrt(keep).

        So A z and b have the same size. The diagonal of A is 0: the reward is linear in each token. c = sqrt(keep), of
        the size of the reward's spread: without it the mean reward is near 0, and a baseline would have no use.
        """
        random = np.random.default_rng([self.seed, self.tokens, self.keep])
        logits, linear = random.normal(size=(2, self.tokens))
        upper = np.triu(random.normal(size=(self.tokens, self.tokens)), 1) / np.sqrt(max(self.keep, 1))
        constant = np.float32(np.sqrt(self.keep))
        return logits.astype(np.float32), constant, linear.astype(np.float32), (upper + upper.T).astype(np.float32)


class Truth(NamedTuple):
    """A gradient, and of its own error: the covariance's trace and Frobenius norm (0 where exact)."""

    gradient: Float[np.ndarray, " tokens"]
    trace: float
    frobenius: float


def reward(constant: Any, linear: Any, pairs: Any, masks: Any) -> Any:
    """c + b.z + z.A.z / 2 of every mask z; jax or numpy."""
    return constant + masks @ linear + ((masks @ pairs) * masks).sum(-1) / 2


def enumerated(problem: Problem, distribution: str) -> Truth:
    """The exact gradient in float64 numpy: sum over ordered draws (or sets) of p R d log p / dphi."""
    logits, constant, linear, pairs = (np.asarray(array, np.float64) for array in problem.arrays())
    ordered = distribution == "plackett-luce"
    draws = (itertools.permutations if ordered else itertools.combinations)(range(problem.tokens), problem.keep)
    chosen = np.array(list(draws), np.int64).reshape(-1, problem.keep)
    masks = np.zeros((len(chosen), problem.tokens))
    np.put_along_axis(masks, chosen, 1.0, axis=-1)
    rewards = reward(constant, linear, pairs, masks)
    weights = np.exp(logits - logits.max())
    if not ordered:
        p = np.prod(weights[chosen], -1)
        p /= p.sum()
        return Truth((p * (rewards - p @ rewards)) @ (masks - p @ masks), 0.0, 0.0)
    p, score, left = np.ones(len(chosen)), masks.copy(), np.tile(weights, (len(chosen), 1))
    for token in chosen.T:
        share = left / left.sum(-1, keepdims=True)
        score -= share
        p *= np.take_along_axis(share, token[:, None], -1)[:, 0]
        np.put_along_axis(left, token[:, None], 0.0, axis=-1)
    return Truth((p * rewards) @ score, 0.0, 0.0)
