"""Policies that look at keys: KeyDiff, and Expected Attention, which holds them against the queries to be expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp.eviction.base import EvictionPolicy, Needs, Seen, heads_first
from rcp.nn.layers import rotate


@dataclass(frozen=True)
class KeyDiff(EvictionPolicy):
    """KeyDiff (Park et al., arXiv 2504.15364): keys unlike the others first.

    score = -cos(k, mean of k / |k| over the head's entries), of rotated keys, as in kvpress.
    """

    name: ClassVar[str] = "keydiff"

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        direction = _unit(seen.k.astype(jnp.float32))
        there = seen.valid[..., None]
        count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1).astype(jnp.float32)
        anchor = _unit(jnp.sum(jnp.where(there, direction, 0.0), axis=1, keepdims=True) / count)
        return -heads_first(jnp.sum(direction * anchor, axis=-1))


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


@dataclass(frozen=True)
class ExpectedAttention(EvictionPolicy):
    """Expected Attention (Devoto et al., arXiv 2510.00636), as in kvpress.

    Queries to come are taken to be normal, with the mean m and covariance S that the prompt's queries have before the
    rotary embedding (its first `sinks` tokens left out), turned by the mean R of the rotations at the next `ahead`
    positions. Then E exp(q . k / sqrt(d)) = exp(k . R m / sqrt(d) + k . R S R^T k / 2d), and

        score = (mean over the query heads of a group, softmax over entries of that exponent + epsilon) * |v|.

    The first `sinks` entries take no part in the softmax and get the best score of the example's layer (kvpress: of
    the batch). The covariance is E q q^T - m m^T, from sums that are gathered chunk by chunk.
    """

    name: ClassVar[str] = "expected_attention"
    ahead: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs(moments=self.sinks)

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        k, v = (x.astype(jnp.float32) for x in (seen.k, seen.v))
        batch, _, kv_heads, dim = k.shape
        mean, covariance = self._query_moments(seen)
        mean = mean.reshape(batch, kv_heads, -1, dim)
        exponent = jnp.einsum("bhgd,bnhd->bhgn", mean, k) * dim**-0.5
        if self.covariance:
            covariance = covariance.reshape(batch, kv_heads, -1, dim, dim)
            turned = jnp.einsum("bhgde,bnhd->bhgne", covariance, k)
            exponent += jnp.einsum("bhgne,bnhe->bhgn", turned, k) / (2 * dim)
        sink = heads_first(seen.position) < self.sinks
        taking_part = heads_first(seen.valid) & ~sink
        exponent = jnp.where(taking_part[:, :, None], exponent, -jnp.inf)
        share = jnp.where(taking_part, jax.nn.softmax(exponent, axis=-1).mean(axis=2), 0.0)
        score = share + self.epsilon
        if self.value_norm:
            score *= heads_first(jnp.linalg.norm(v, axis=-1))
        best = jnp.max(jnp.where(taking_part, score, 0.0), axis=(1, 2), keepdims=True)
        return jnp.where(sink, best, score)

    def _query_moments(self, seen: Seen) -> tuple[Array, Array]:
        """Mean [batch, heads, dim] and covariance [batch, heads, dim, dim] of the queries to come."""
        s = seen.statistics
        if s.query_count is None or s.query_sum is None or s.query_outer is None:
            raise ValueError("the moments of the queries were not gathered (Needs.moments)")
        count = jnp.maximum(s.query_count, 1.0)[:, None, None]
        mean = s.query_sum / count
        covariance = s.query_outer / count[..., None] - mean[..., :, None] * mean[..., None, :]
        position = seen.next[:, None] + jnp.arange(self.ahead, dtype=jnp.int32)[None]
        angle = position.astype(jnp.float32)[..., None] * seen.frequencies[None, None]
        cos, sin = (f(angle).mean(axis=1)[:, None] for f in (jnp.cos, jnp.sin))  # [batch, 1, half]
        mean = rotate(mean, cos, sin)
        cos, sin = cos[:, None], sin[:, None]
        half = rotate(covariance, cos, sin)  # S R^T
        return mean, rotate(jnp.swapaxes(half, -1, -2), cos, sin)  # (S R^T)^T R^T = R S R^T, since S = S^T
