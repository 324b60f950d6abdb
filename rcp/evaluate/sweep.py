"""Every policy at every budget over a fixed set of examples: prune, really drop, read.

A budget is data, not a shape: the scores of a batch are computed once, and the reader is compiled once a static length.
Budgets whose prompts fit the same length share its compile (`Results.compiles` counts them).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rcp.nn.pruner import Granularity, budget_of_rate, compact, prune
from rcp.policies import Policy, context_tokens
from rcp.types import Batch, Role, UserError

ROUND = 16
"""Static lengths are multiples of this, so that close budgets share a compile."""


class ReadingLike(Protocol):
    """What the reader returns; see `rcp.nn.reader.Reading`."""

    @property
    def nll_sum(self) -> Any: ...
    @property
    def answer_tokens(self) -> Any: ...
    @property
    def exact(self) -> Any: ...


@dataclass(frozen=True)
class Reader:
    """`read(params, batch) -> Reading` on a compacted batch; pure, compiled here once a static length."""

    read: Callable[[Any, Batch], ReadingLike]
    params: Any = field(default=None, repr=False)
    correct: Callable[[Batch], np.ndarray] | None = None
    """Where given, decodes the answers of a compacted batch and judges them, bool [batch]; replaces `Reading.exact`."""


@dataclass(frozen=True)
class Results:
    """One entry an example; R settings, each a (method, keep rate asked), n examples.

    Attributes:
      settings: (method, keep rate asked); full has 1 and none 0.
      index, group, context, answer_tokens: int [n]; number, group number, context tokens, answer tokens.
      kept: int [R, n], context tokens that the reader saw.
      nll: float [R, n], negative log-likelihood of the gold answer in nats, mean over its tokens.
      em: bool [R, n], exact match.
      prune_seconds, model_seconds: float [R], mean seconds an example for scoring and dropping, and for the reader.
      compiles: static lengths for which the reader was compiled.
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


@dataclass
class _Column:
    """What one setting gathers over the batches."""

    kept: list[np.ndarray] = field(default_factory=list)
    nll: list[np.ndarray] = field(default_factory=list)
    em: list[np.ndarray] = field(default_factory=list)
    keep: list[np.ndarray] = field(default_factory=list)
    prune_seconds: float = 0.0
    model_seconds: float = 0.0


def sweep(
    batches: Sequence[Batch],
    policies: Sequence[Policy],
    reader: Reader,
    *,
    keep_rates: Sequence[float],
    granularity: Granularity,
    seed: int = 0,
    groups: Sequence[str] = ("",),
    shown: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Results:
    """Evaluates every policy at every keep rate, deterministically.

    Args:
      batches: whole prompts, all of one shape. Rows of weight 0 are left out of the results.
      policies: see `rcp.policies`; those that do not heed the budget are evaluated once.
      keep_rates: fractions of the context's tokens to keep, in (0, 1].
      granularity: of policies that have none of their own.
      seed: of the policies that draw.
      shown: of so many first examples the masks are kept.
      progress: told of each setting that is done.

    Raises:
      UserError: no examples, or a keep rate outside (0, 1].
    """
    for rate in keep_rates:
        if not 0 < rate <= 1:
            raise UserError(f"config.eval.keep_rates: {rate} is outside (0, 1]")
    if not batches:
        raise UserError("nothing to evaluate: the split has no examples")
    bench = _Bench(reader, [jax.tree.map(np.asarray, batch) for batch in batches], shown)
    key = jax.random.key(seed)
    columns: dict[tuple[str, float], _Column] = {}
    for policy in policies:
        rates = list(keep_rates) if policy.swept else [0.0 if policy.name == "none" else 1.0]
        granular = policy.granularity or granularity
        for number, batch in enumerate(bench.batches):
            scores, seconds = bench.scores(policy, batch, key, first=number == 0)
            for rate in rates:
                column = columns.setdefault((policy.name, rate), _Column())
                bench.run(column, number, policy, scores, rate, granular)
                column.prune_seconds += seconds
        for rate in rates:
            em = np.concatenate(columns[policy.name, rate].em).mean()
            nll = np.concatenate(columns[policy.name, rate].nll).mean()
            progress(f"{policy.name} at {rate:g}: exact match {em:.3f}, answer NLL {nll:.3f}")
    return bench.results(columns, tuple(groups))


class _Bench:
    """The compiled functions and the batches that all settings share."""

    def __init__(self, reader: Reader, batches: Sequence[Batch], shown: int):
        self.reader, self.batches, self.shown = reader, batches, shown
        self.real = [batch.weight > 0 for batch in batches]
        self._compiled: dict[tuple, Any] = {}
        self._memo: dict[tuple[int, bytes], tuple[Any, np.ndarray, float]] = {}
        self.answer_tokens: dict[int, np.ndarray] = {}

    def scores(self, policy: Policy, batch: Batch, key: jax.Array, *, first: bool) -> tuple[Any, float]:
        """The policy's scores and the seconds they took, compilation excluded."""
        if first:
            jax.block_until_ready(policy.scores(batch, key=key))
        start = time.perf_counter()
        scores = jax.block_until_ready(policy.scores(batch, key=key))
        return scores, time.perf_counter() - start

    def run(
        self, column: _Column, number: int, policy: Policy, scores: Any, rate: float, granularity: Granularity
    ) -> None:
        """One batch of one setting."""
        batch, real = self.batches[number], self.real[number]
        budget = policy.spend(batch, budget_of_rate(batch, max(rate, 1e-6)))
        length = self._length(rate if policy.swept else float(policy.name == "full"))
        select = self._compile(("select", granularity), partial(prune, granularity=granularity), scores, batch, budget)
        drop = self._compile(("drop", length), partial(compact, length=length), batch, jnp.asarray(batch.forced))
        start = time.perf_counter()
        pruned = select(scores, batch, budget)
        short = jax.block_until_ready(drop(batch, pruned.keep))
        column.prune_seconds += time.perf_counter() - start
        reading, correct, seconds = self._read(number, short, length)
        column.model_seconds += seconds
        tokens = np.maximum(np.asarray(reading.answer_tokens), 1)
        self.answer_tokens[number] = tokens[real]
        column.kept.append(np.asarray(pruned.kept)[real])
        column.nll.append((np.asarray(reading.nll_sum, np.float64) / tokens)[real])
        column.em.append(correct[real])
        column.keep.append(np.asarray(pruned.keep)[real] if number * len(real) < self.shown else np.zeros((0, 0), bool))

    def _length(self, rate: float) -> int:
        """The smallest multiple of ROUND that holds every prompt at this rate, at most the batches' own length."""
        need = 0
        for batch in self.batches:
            fixed = np.sum((batch.role != Role.PAD) & (batch.role != Role.CONTEXT), axis=1)
            kept = np.asarray(budget_of_rate(batch, rate)) if rate > 0 else 0
            need = max(need, int(np.max(np.maximum(fixed + kept, fixed + batch.forced.sum(axis=1)))))
        return min(-(-need // ROUND) * ROUND, self.batches[0].tokens.shape[1])

    def _read(self, number: int, short: Batch, length: int) -> tuple[ReadingLike, np.ndarray, float]:
        """The reader's verdict. A prompt that was read before (every method at keep rate 1, say) is not read again."""
        print_of = hashlib.sha256(np.asarray(short.tokens).tobytes() + np.asarray(short.role).tobytes()).digest()
        if (number, print_of) not in self._memo:
            read = self._compile(("read", length), self.reader.read, self.reader.params, short)
            start = time.perf_counter()
            reading = jax.block_until_ready(read(self.reader.params, short))
            seconds = time.perf_counter() - start
            correct = np.asarray(reading.exact) if self.reader.correct is None else self.reader.correct(short)
            self._memo[number, print_of] = (reading, correct, seconds)
        return self._memo[number, print_of]

    def _compile(self, name: tuple, function: Callable, *arguments: Any) -> Any:
        if name not in self._compiled:
            self._compiled[name] = jax.jit(function).lower(*arguments).compile()
        return self._compiled[name]

    def results(self, columns: dict[tuple[str, float], _Column], groups: tuple[str, ...]) -> Results:
        real, n = self.real, sum(int(rows.sum()) for rows in self.real)

        def rows(values: Sequence[Any]) -> np.ndarray:
            return np.concatenate([np.asarray(value)[keep] for value, keep in zip(values, real)])

        every = list(columns.values())
        return Results(
            settings=tuple(columns),
            index=rows([batch.index for batch in self.batches]),
            group=rows([batch.group for batch in self.batches]),
            context=rows([context_tokens(batch) for batch in self.batches]),
            answer_tokens=np.concatenate([self.answer_tokens[i] for i in range(len(self.batches))]),
            kept=np.stack([np.concatenate(column.kept) for column in every]),
            nll=np.stack([np.concatenate(column.nll) for column in every]),
            em=np.stack([np.concatenate(column.em) for column in every]),
            prune_seconds=np.array([column.prune_seconds for column in every]) / n,
            model_seconds=np.array([column.model_seconds for column in every]) / n,
            compiles=sum(name[0] == "read" for name in self._compiled),
            groups=groups,
            shown=tuple(self._shown(every)),
        )

    def _shown(self, columns: Sequence[_Column]) -> list[Shown]:
        out = []
        for number, (batch, real) in enumerate(zip(self.batches, self.real)):
            for place, row in enumerate(np.flatnonzero(real)):
                if len(out) == self.shown:
                    return out
                length = int(np.sum(batch.role[row] != Role.PAD))
                keep = np.stack([column.keep[number][place, :length] for column in columns])
                out.append(Shown(int(batch.index[row]), batch.tokens[row, :length], batch.role[row, :length], keep))
        return out
