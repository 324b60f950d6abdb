"""What a sweep asks of a reader: a model that is compiled, or one that runs on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from rcp.evaluate.budgets import Budget
from rcp.evaluate.results import Sent
from rcp.nn.pruner import Cut, Granularity
from rcp.policies import Policy
from rcp.types import Batch


class ReadingLike(Protocol):
    """What the reader returns; see `rcp.nn.reader.Reading`."""

    @property
    def nll_sum(self) -> Any: ...
    @property
    def answer_tokens(self) -> Any: ...
    @property
    def exact(self) -> Any: ...


class Judge(NamedTuple):
    """Exact match by decoding. `decode(params, batch)` is pure, and compiled here; `correct` judges on the host.

    Attributes:
      decode: from compacted prompts (with their gold answers, which it must not read) to what was decoded.
      correct: from that and the batch to bool [batch].
    """

    decode: Callable[[Any, Batch], Any]
    correct: Callable[[Any, Batch], np.ndarray]


class Picked(NamedTuple):
    """The keep mask bool [batch, tokens], the context tokens kept int [batch], and how long the texts are."""

    keep: np.ndarray
    kept: np.ndarray
    sent: Sent


class HostReader(Protocol):
    """A reader that is no function of arrays: it runs on the host and is called as it is (`rcp.evaluate.outside`)."""

    def prune(
        self,
        policy: Policy,
        budget: Budget,
        scores: Any,
        batch: Batch,
        spend: Any,
        *,
        granularity: Granularity,
        cut: Cut,
    ) -> Picked:
        """As `rcp.evaluate.sweep` does, for a policy that may spend `spend` tokens of each prompt."""
        ...

    def read(self, batch: Batch, keep: np.ndarray) -> ReadingLike:
        """What it makes of the text that the mask leaves of each prompt, which hangs on places, not on tokens alone."""
        ...


@dataclass(frozen=True)
class Reader:
    """`read(params, batch) -> Reading` on a compacted batch; pure, compiled here once. A `judge` replaces `exact`.

    A `host` reader takes the place of all that, and of pruning: it knows what a text costs.
    """

    read: Callable[[Any, Batch], ReadingLike]
    params: Any = field(default=None, repr=False)
    judge: Judge | None = None
    host: HostReader | None = None
