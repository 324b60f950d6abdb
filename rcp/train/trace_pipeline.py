"""Batches of traces: an endless shuffled stream that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from rcp.config_eviction import EvictionConfig
from rcp.eviction.learned import log_weight
from rcp.train.traces import Traces
from rcp.types import UserError


class Asked(Protocol):
    """One question with its answer for each context; see `TraceBatch`."""

    @property
    def tokens(self) -> Any: ...

    @property
    def answer(self) -> Any: ...


class TraceBatch(NamedTuple):
    """Contexts, or places drawn from them, padded to one length, with what questions made of the entries. Floats are
    float16.

    Attributes:
      position: the tokens that the places hold, ascending; -1 at padding. length: tokens of the context.
      measured: `Traces.measured`, and behind them, where the scorer sees the question, how that attends.
      hidden: of width 0 where it is not used.
      useful: attention paid by question and answer: of all questions of a context together, or of the one below.
      context: its token ids, -1 at padding, which comes first; of width 0 where it is not read anew.
      tokens, answer: one question with its answer, -1 and False at padding; of width 0 where nothing is to be read.
      weight, index: 1, and the number of the trace.
    """

    k: Any  # [B, layers, entries, kv_heads, dim]
    v: Any
    position: Any  # int32 [B, entries]
    length: Any  # int32 [B]
    measured: Any  # [B, layers, measures, kv_heads, entries]
    hidden: Any  # [B, layers, entries, model_dim]
    useful: Any  # [B, layers, kv_heads, entries]
    context: Any  # int32 [B, C]
    tokens: Any  # int32 [B, T]
    answer: Any  # bool [B, T]
    weight: Any  # float32 [B]
    index: Any  # int32 [B]


class TracePipeline(Iterator[TraceBatch]):
    """Endless batches, each epoch in another order; a pure function of the arguments and the number of the batch.

    Args:
      answers: whether a question is to be read.
      shard: (process, processes): this process gets its consecutive share of the rows of every batch.
    """

    def __init__(
        self,
        traces: Traces,
        c: EvictionConfig,
        *,
        batch_size: int,
        seed: int,
        answers: bool,
        shard: tuple[int, int] = (0, 1),
    ):
        if batch_size % shard[1]:
            raise UserError(f"config.eviction: batches of {batch_size}: not divisible by the {shard[1]} processes")
        traces.make_all()
        if not len(traces):
            raise UserError("config.eviction.tasks have no example for these contexts")
        self._traces, self._config, self._size, self._seed = traces, c, batch_size, seed
        self._answers, self._shard, self._done = answers, shard, 0

    def __next__(self) -> TraceBatch:
        process, processes = self._shard
        rows = self._size // processes
        first = self._done * self._size + process * rows
        self._done += 1
        return stack([self._row(first + row) for row in range(rows)])

    def _row(self, number: int) -> TraceBatch:
        """Row `number` of the stream."""
        epoch, place = divmod(number, len(self._traces))
        rng = np.random.default_rng([self._seed, epoch])
        index = int(rng.permutation(len(self._traces))[place])
        rng = np.random.default_rng([self._seed, epoch, index])
        return padded_trace(self._traces.load(index), index, self._config, rng, self._answers)

    def get_state(self) -> dict[str, int]:
        return {"batches": self._done}

    def set_state(self, state: dict[str, int]) -> None:
        self._done = state["batches"]


def padded_trace(
    trace: dict[str, np.ndarray], index: int, c: EvictionConfig, rng: np.random.Generator, answers: bool
) -> TraceBatch:
    """One row; its question, and where a step does not look at all of its places these, are drawn."""
    question = int(rng.random() * len(trace["tokens"]))
    length = trace["k"].shape[1]
    size = c.tokens if answers or not c.entries else c.entries
    places = np.arange(length)
    if length > size:
        places = np.sort(rng.permutation(length)[:size])

    def wide(x: np.ndarray, axis: int) -> np.ndarray:
        drawn = x if len(places) == length else np.take(x, places, axis)
        return np.pad(drawn, [(0, size - len(places) if i == axis else 0) for i in range(x.ndim)])

    measured = trace["measured"]
    if c.question:
        measured = np.concatenate([measured, np.asarray(log_weight(trace["asked"][question]), np.float16)[None]])
    useful = trace[c.usefulness]
    useful = useful[question] if c.question else useful.max(0) if c.usefulness == "largest" else useful.mean(0)
    k = trace["k"]
    nothing = np.zeros((*k.shape[:2], 0), np.float16)
    tokens, answer = trace["tokens"][question], trace["answer"][question]
    width = c.question_tokens if answers else 0
    context = trace["context"] if answers and c.reading == "anew" else np.zeros((0,), np.int32)
    before = c.tokens - len(context) if len(context) else 0
    return TraceBatch(
        k=wide(k, 1),
        v=wide(trace["v"], 1),
        position=np.pad(places, (0, size - len(places)), constant_values=-1).astype(np.int32),
        length=np.int32(length),
        measured=wide(measured.swapaxes(0, 1), 3),
        hidden=wide(trace.get("hidden", nothing), 1),
        useful=wide(useful, 2),
        context=np.pad(context, (before, 0), constant_values=-1).astype(np.int32),
        tokens=np.pad(tokens, (0, c.question_tokens), constant_values=-1)[:width].astype(np.int32),
        answer=np.pad(answer, (0, c.question_tokens))[:width],
        weight=np.float32(1),
        index=np.int32(index),
    )


def stack(rows: list[TraceBatch]) -> TraceBatch:
    """Rows as one batch."""
    return TraceBatch(*(np.stack(x) for x in zip(*rows, strict=True)))
