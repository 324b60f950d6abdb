"""What a sweep finds, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcp.types import Batch


@dataclass(frozen=True)
class Results:
    """One entry an example; R settings, each a (method, keep rate asked), n examples.

    Attributes:
      settings: (method, keep rate asked); full has 1 and none 0.
      index, group, context, answer_tokens: int [n]; number, group number, context tokens, answer tokens.
      kept: int [R, n], context tokens that the reader saw.
      nll: float [R, n], negative log-likelihood of the gold answer in nats, mean over its tokens.
      em: bool [R, n], exact match; `decoded` says whether answers were decoded and judged, or teacher-forced.
      prune_seconds, model_seconds: float [R], mean seconds an example for scoring and dropping, and for the reader.
      how: what exact match is here, in words, where `decoded` does not say enough.
      compiles: how many times the reader was compiled.
      groups: names of the group numbers.
      shown: the first examples with what each setting kept, for the page.
    """

    settings: tuple[tuple[str, float], ...]
    index: np.ndarray
    group: np.ndarray
    context: np.ndarray
    answer_tokens: np.ndarray
    kept: np.ndarray
    nll: np.ndarray
    em: np.ndarray
    prune_seconds: np.ndarray
    model_seconds: np.ndarray
    decoded: bool = False
    how: str = ""
    compiles: int = 0
    groups: tuple[str, ...] = ("",)
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One example's tokens [t] and roles [t] without padding, and the keep mask [R, t] of every setting."""

    index: int
    tokens: np.ndarray
    role: np.ndarray
    keep: np.ndarray


def real_rows(batches: Sequence[Batch], values: Sequence[Any]) -> np.ndarray:
    """One array [batch, ...] a batch, concatenated, without the rows of weight 0."""
    return np.concatenate([np.asarray(value)[np.asarray(batch.weight) > 0] for batch, value in zip(batches, values)])
