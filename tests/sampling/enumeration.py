"""Exact distributions of small problems, by enumeration in float64 numpy. Nothing here comes from `rcp`."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats


def subsets(n: int, k: int) -> np.ndarray:
    """bool [sets, n]: every set of k among n."""
    masks = np.zeros((len(list(itertools.combinations(range(n), k))), n), bool)
    for row, chosen in enumerate(itertools.combinations(range(n), k)):
        masks[row, list(chosen)] = True
    return masks


def orderings(n: int, k: int) -> np.ndarray:
    """int32 [orderings, n]: ranks of every ordered draw of k among n; the tokens not drawn follow by index."""
    ranks = []
    for drawn in itertools.permutations(range(n), k):
        order = list(drawn) + [i for i in range(n) if i not in drawn]
        ranks.append(np.argsort(order))
    return np.asarray(ranks, np.int32)


def ordered_plackett_luce(logits: np.ndarray, ranks: np.ndarray, k: int) -> np.ndarray:
    """Probabilities [orderings] of ordered draws, by drawing one token after another."""
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    result = np.ones(len(ranks))
    for row, rank in enumerate(ranks):
        left = weights.sum()
        for token in np.argsort(rank)[:k]:
            result[row] *= weights[token] / left
            left -= weights[token]
    return result


def plackett_luce_sets(logits: np.ndarray, k: int) -> np.ndarray:
    """Probabilities [sets] of the unordered draws, in the order of `subsets`."""
    n = len(logits)
    ranks = orderings(n, k)
    by_order = ordered_plackett_luce(logits, ranks, k)
    index = {tuple(mask): row for row, mask in enumerate(subsets(n, k))}
    result = np.zeros(len(index))
    for rank, p in zip(ranks, by_order, strict=True):
        result[index[tuple(rank < k)]] += p
    return result


def conditional_bernoulli_sets(logits: np.ndarray, k: int) -> np.ndarray:
    """Probabilities [sets] proportional to exp(sum of the logits), in the order of `subsets`."""
    total = (subsets(len(logits), k) * np.asarray(logits, np.float64)).sum(-1)
    weights = np.exp(total - total.max())
    return weights / weights.sum()


def counts(samples: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """How often each outcome (row) occurs among the samples (rows); every sample must be an outcome."""
    index = {row.tobytes(): i for i, row in enumerate(outcomes)}
    found = [index[row.tobytes()] for row in np.asarray(samples, outcomes.dtype)]
    return np.bincount(found, minlength=len(outcomes))


def assert_frequencies(observed: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square at a level of 1e-4 (seeds are fixed, so that a pass stays a pass); rare outcomes are
    pooled."""
    expected = probabilities * observed.sum()
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    statistic = np.sum((observed - expected) ** 2 / np.maximum(expected, 1e-9))
    bound = stats.chi2.ppf(1 - 1e-4, df=len(expected) - 1)
    assert statistic < bound, f"chi-square {statistic:.1f} over {len(expected)} outcomes, bound {bound:.1f}"


def gradient(function, logits: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences in float64; [outputs, tokens] or [tokens]."""
    columns = []
    for i in range(len(logits)):
        shift = np.zeros(len(logits))
        shift[i] = step
        columns.append((np.asarray(function(logits + shift)) - np.asarray(function(logits - shift))) / (2 * step))
    return np.stack(columns, -1)
