"""What a sweep finds, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rcp.types import Batch

UNSWEPT = ("full", "none")
"""The methods that never heed a budget."""


@dataclass(frozen=True)
class Results:
    """One entry an example; R settings, each a (method, keep rate asked), n examples.

    Attributes:
      settings: (method, keep rate asked); full has 1 and none 0, another method of `unswept` 1.
      unswept: names of the methods that heed no budget, of `settings` or not.
      index, group, context, answer_tokens: int [n]; number, group number, context tokens, answer tokens.
      kept: int [R, n], context tokens that the reader saw.
      nll: float [R, n], negative log-likelihood of the gold answer in nats, mean over its tokens.
      em: bool [R, n], exact match; `decoded` says whether answers were decoded and judged, or teacher-forced.
      prune_seconds, model_seconds: float [R], mean seconds an example for scoring and dropping, and for the reader.
      how: what exact match is here, in words, where `decoded` does not say enough.
      compiles: how many times the reader was compiled.
      groups: names of the group numbers.
      shown: the first examples with what each setting kept, for the page.
      sent: [R], tokens of the texts that were sent; None where prompts did not go out as text.
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
    sent: tuple[Sent | None, ...] = ()
    unswept: tuple[str, ...] = UNSWEPT

    def asked(self, setting: tuple[str, float]) -> float | None:
        """The keep rate that was asked for in one of `settings`; None where the method decides it itself."""
        method, rate = setting
        return None if method in self.unswept and method not in UNSWEPT else rate


@dataclass(frozen=True)
class Shown:
    """One example's tokens [t] and roles [t] without padding, and the keep mask [R, t] of every setting."""

    index: int
    tokens: np.ndarray
    role: np.ndarray
    keep: np.ndarray


class Sent(NamedTuple):
    """Of prompts that go out as text, int [prompts]: the context tokens asked for; how many the text of just as many of
    the pruner's tokens has; how many the text that is sent has."""

    asked: np.ndarray
    unmended: np.ndarray
    sent: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Means and shares of prompts, fit for json. Over: more tokens than asked for."""
        asked, unmended, sent = self
        return {
            "n": len(asked),
            "asked": float(asked.mean()),
            "unmended": float(unmended.mean()),
            "unmended_over": float(np.mean(unmended > asked)),
            "sent": float(sent.mean()),
            "sent_over": float(np.mean(sent > asked)),
            "sent_exactly": float(np.mean(sent == asked)),
        }


def real_rows(batches: Sequence[Batch], values: Sequence[Any]) -> np.ndarray:
    """One array [batch, ...] a batch, concatenated, without the rows of weight 0."""
    return np.concatenate([np.asarray(value)[np.asarray(batch.weight) > 0] for batch, value in zip(batches, values)])
