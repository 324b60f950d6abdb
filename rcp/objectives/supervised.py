"""Supervised objectives: through the relaxed mask, or to keep-labels."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rcp.objectives.base import Outcome, Settings


def nll(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """Answer NLL under the pruned context, nats a token."""
    assert outcome.nll is not None
    return outcome.nll


def kl(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """KL(full-context model || pruned-context model) of the next token, mean over the answer's places, nats."""
    assert outcome.kl is not None
    return outcome.kl


def bce(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """Binary cross-entropy of the scores to keep-labels in [0, 1], summed over what has a label, nats.

    Token scores (granularity "token" or "two_stage") learn the labels of tokens, or where there are none those of their
    segments: the mean over labelled tokens, times the number of labelled segments, or of segments where tokens have
    labels of their own.
    """
    assert outcome.labels is not None
    known = outcome.labels.segments >= 0
    total = jnp.zeros(known.shape[0], jnp.float32)
    if settings.granularity != "token":
        losses = optax.sigmoid_binary_cross_entropy(outcome.segment_scores, outcome.labels.segments)
        total += jnp.sum(jnp.where(known, losses, 0.0), axis=1)
    if settings.granularity != "segment":
        segment = outcome.batch.segment
        label, number = outcome.labels.tokens, _segments(segment)
        if label is None:
            number = jnp.sum(known, axis=1, dtype=jnp.int32)
            label = jnp.take_along_axis(outcome.labels.segments, jnp.maximum(segment, 0), axis=1)
        losses = optax.sigmoid_binary_cross_entropy(outcome.token_scores, label)
        counted = (segment >= 0) & (label >= 0)
        count = jnp.maximum(jnp.sum(counted, axis=1, dtype=jnp.float32), 1.0)
        mean = jnp.sum(jnp.where(counted, losses, 0.0), axis=1) / count
        total += mean * number.astype(jnp.float32)
    return total


def _segments(segment: Int[Array, "batch tokens"]) -> Int[Array, " batch"]:
    """How many segments have tokens; those of one stand side by side."""
    before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.sum((segment >= 0) & (segment != before), axis=1, dtype=jnp.int32)
