"""The policies' formulas once more, in numpy, one prompt and one layer at a time, with nothing blocked or padded."""

from __future__ import annotations

import numpy as np

from tests.eviction.small import GROUP, Layer


def softmax(x: np.ndarray) -> np.ndarray:
    mass = np.exp(x - x.max(-1, keepdims=True))
    return mass / mass.sum(-1, keepdims=True)


def attention(layer: Layer) -> np.ndarray:
    """[heads, queries, keys], causal."""
    k = np.repeat(layer.k, GROUP, axis=1)
    scores = np.einsum("thd,shd->hts", layer.q, k) / np.sqrt(k.shape[-1])
    count = len(k)
    return softmax(np.where(np.tril(np.ones((count, count), bool))[None], scores, -np.inf))


def of_groups(x: np.ndarray) -> np.ndarray:
    """Mean over the query heads of each key-value head."""
    return x.reshape(-1, GROUP, *x.shape[1:]).mean(1)


def h2o(layer: Layer) -> np.ndarray:
    return of_groups(attention(layer).sum(1))


def observed(layer: Layer) -> np.ndarray:
    count = len(layer.k)
    return h2o(layer) / np.arange(count, 0, -1)


def tova(layer: Layer) -> np.ndarray:
    last = attention(layer)[:, -1].mean(0)
    return np.stack([last] * (layer.k.shape[1]))


def snapkv(layer: Layer, window: int, kernel: int) -> np.ndarray:
    """Of the entries before the window."""
    count = len(layer.k)
    seen = attention(layer)[:, count - window :, : count - window].mean(1)
    half = kernel // 2
    padded = np.pad(seen, ((0, 0), (half, half)))
    return of_groups(np.stack([padded[:, i : i + kernel].mean(1) for i in range(seen.shape[1])], axis=1))


def keydiff(layer: Layer) -> np.ndarray:
    out = np.zeros(layer.k.shape[:2])
    for head in range(layer.k.shape[1]):
        keys = layer.k[:, head]
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        anchor = unit.mean(0)
        out[:, head] = -(unit @ anchor) / np.linalg.norm(anchor)
    return out.T


def expected_attention(layer: Layer, frequencies: np.ndarray, sinks: int, ahead: int) -> np.ndarray:
    """Of the entries after the sinks. Rotations are written out as matrices."""
    count, dim = len(layer.k), layer.k.shape[-1]
    rotation = np.zeros((dim, dim))
    half = dim // 2
    for position in range(count, count + ahead):
        cos, sin = np.diag(np.cos(position * frequencies)), np.diag(np.sin(position * frequencies))
        rotation += np.block([[cos, -sin], [sin, cos]]) / ahead
    assert half == len(frequencies)
    scores = []
    for head in range(layer.q.shape[1]):
        q = layer.q_plain[sinks:, head]
        mean, covariance = rotation @ q.mean(0), rotation @ np.cov(q.T, bias=True) @ rotation.T
        k = layer.k[sinks:, head // GROUP]
        exponent = k @ mean / np.sqrt(dim) + np.einsum("ni,ij,nj->n", k, covariance, k) / dim / 2
        scores.append(softmax(exponent))
    return of_groups(np.stack(scores)) * np.linalg.norm(layer.v[sinks:], axis=-1).T


def kvzip(layer: Layer, context: int, start: int, chunk: int, sinks: int) -> np.ndarray:
    """Of the entries `start .. start + chunk`; the layer has read the context and a request to repeat that chunk."""
    stop = min(start + chunk, context)
    keys = [*range(min(sinks, start)), *range(start, stop), *range(context, len(layer.k))]
    out = np.zeros((layer.k.shape[1], stop - start))
    for head in range(layer.q.shape[1]):
        for t in range(context, len(layer.k)):
            seen = [j for j in keys if j <= t]
            weights = softmax(layer.k[seen, head // GROUP] @ layer.q[t, head] / np.sqrt(layer.q.shape[-1]))
            found = np.array([w for j, w in zip(seen, weights) if start <= j < stop])
            out[head // GROUP] = np.maximum(out[head // GROUP], found)
    return out


def adakv(scores: np.ndarray, kept: int, floor: float) -> np.ndarray:
    """Mask [heads, entries] of `heads * kept` entries: kvpress's rule, with the safeguard of `floor`."""
    scores = scores.astype(np.float64).copy()
    for row in scores:
        row[np.argsort(-row, kind="stable")[: int(kept * floor)]] = np.inf
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[: len(scores) * kept]] = True
    return mask.reshape(scores.shape)
