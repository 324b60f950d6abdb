"""Every policy at every budget over a fixed set of examples: prune, really drop, read; one compile of the reader.

A budget is data, not a shape. The scores of a batch are computed once (once a budget where the policy needs it);
pruning gets the budget as an array; and the reader is one compiled function that gets the number of a static length
beside the prompts and reads only that much of them (`lax.switch` over all lengths that some setting needs). So each
setting costs what its own prompts cost, and `Results.compiles` is 1. On a CPU (SmolLM2-135M, bfloat16, 8 prompts of 48
to 176 tokens) this takes .98 to 1.00 of the time of a compile for each length: XLA neither copies the parameters into a
branch nor splits its work otherwise.

What is found is kept in cells (`rcp.evaluate.cells`), and what they hold already is not computed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from rcp.evaluate.budgets import Budget, make_budgets
from rcp.evaluate.cells import Cell, Piece, digest, gather
from rcp.evaluate.lengths import shared_lengths
from rcp.evaluate.reading import Reader, ReadingLike
from rcp.evaluate.results import UNSWEPT, Results, Shown
from rcp.nn.layout import context_tokens
from rcp.nn.lengths import of_lengths
from rcp.nn.pruner import Cut, Granularity, compact, prune
from rcp.policies import Policy
from rcp.types import Batch, Role, UserError


def sweep(
    batches: Sequence[Batch],
    policies: Sequence[Policy],
    reader: Reader,
    *,
    keep_rates: Sequence[float],
    keep_tokens: Sequence[int] = (),
    granularity: Granularity,
    cut: Cut = "end",
    seed: int = 0,
    groups: Sequence[str] = ("",),
    shown: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    cell_of: Callable[[Policy], Cell] = lambda policy: Cell(),
    watch: Callable[[str, int, int], None] = lambda method, done, batches: None,
) -> Results:
    """Evaluates every policy at every keep rate, deterministically.

    Args:
      batches: whole prompts, all of one shape. Rows of weight 0 are left out of the results.
      policies: see `rcp.policies`; those that do not heed the budget are evaluated once.
      keep_rates: fractions of the context's tokens to keep, in (0, 1].
      keep_tokens: more budgets, numbers of tokens; the rate of each in the results is the mean over the examples.
      granularity: of policies that have none of their own. cut: as in `rcp.nn.pruner.prune`, of all of them.
      seed: of the policies that draw.
      shown: of so many first examples the masks are kept.
      progress: told of each setting that is done.
      cell_of: where the findings of a policy are kept. Batches that are there are not computed again; after each new
        one the cell is saved.
      watch: told (method, batches done, of how many) before each new batch and after the last; an exception of it ends
        the sweep, and what is done is saved.

    Raises:
      UserError: no examples, or a keep rate outside (0, 1].
    """
    if not batches:
        raise UserError("nothing to evaluate: the split has no examples")
    batches = [jax.tree.map(np.asarray, batch) for batch in batches]
    budgets = make_budgets(batches, keep_rates, keep_tokens)
    plan = {policy.name: budgets if policy.swept else [_unswept(policy)] for policy in policies}
    settings = [(policy, budget) for policy in policies for budget in plan[policy.name]]
    decides = [policy.name for policy in policies if not policy.swept and policy.name not in UNSWEPT]
    bench = _Bench(reader, batches, settings, shown, cut)
    key, digests = jax.random.key(seed), [digest(batch) for batch in batches]
    columns: dict[tuple[str, float], list[Piece]] = {}
    for policy in policies:
        cell = cell_of(policy)
        missing: dict[int, list[Budget]] = {}
        for number, name in enumerate(digests):
            shown = bench.shows(number)
            if wanted := [budget for budget in plan[policy.name] if not cell.holds(budget.key, name, shown=shown)]:
                missing[number] = wanted
        done = len(batches) - len(missing)
        if note := cell.note(done, len(batches)):
            progress(f"{policy.name}: {note}")
        for place, (number, wanted) in enumerate(missing.items()):
            watch(policy.name, done + place, len(batches))
            found = bench.batch(policy, number, wanted, key, policy.granularity or granularity, first=place == 0)
            cell.pieces |= {(budget.key, digests[number]): piece for budget, piece in found.items()}
            cell.save(jax.devices()[0].device_kind)
        if missing:
            watch(policy.name, len(batches), len(batches))
        for budget in plan[policy.name]:
            pieces = [cell.pieces[budget.key, name] for name in digests]
            columns[policy.name, budget.rate] = pieces
            em, nll = (np.concatenate([getattr(piece, name) for piece in pieces]).mean() for name in ("em", "nll"))
            likelihood = "not available" if np.isnan(nll) else f"{nll:.3f}"
            at = "" if policy.name in decides else f" at {budget}"
            progress(f"{policy.name}{at}: exact match {em:.3f}, answer NLL {likelihood}")
    return gather(
        columns,
        decoded=reader.judge is not None or reader.host is not None,
        compiles=bench.compiles.get("read", 0),
        unswept=decides,
        groups=groups,
        shown=bench.shown_examples(list(columns.values())),
    )


def _unswept(policy: Policy) -> Budget:
    """The budget of a policy that heeds none, for its name in stored results. Tables show it with what it kept."""
    return Budget(0.0 if policy.name == "none" else 1.0)


class _Bench:
    """The compiled functions and the batches that all settings share."""

    def __init__(
        self,
        reader: Reader,
        batches: Sequence[Batch],
        settings: Sequence[tuple[Policy, Budget]],
        shown: int,
        cut: Cut,
    ):
        self.reader, self.batches, self.shown = reader, batches, shown
        self.cut: Cut = cut
        self.real = [batch.weight > 0 for batch in batches]
        self._needed = {(policy.name, budget): self._needs(policy, budget) for policy, budget in settings}
        self.lengths = shared_lengths(np.concatenate(list(self._needed.values())), batches[0].tokens.shape[1])
        self.compiles: dict[str, int] = {}
        self._compiled: dict[tuple, Any] = {}
        self._picked: set[Granularity] = set()  # at which the host reader has compiled what it needs
        self._memo: dict[tuple[int, int, bytes], tuple[Any, np.ndarray, float]] = {}

    def shows(self, number: int) -> bool:
        """Whether the masks of a batch are kept, for the page."""
        return number * int(self.real[0].sum()) < self.shown

    def batch(
        self,
        policy: Policy,
        number: int,
        budgets: Sequence[Budget],
        key: jax.Array,
        granularity: Granularity,
        *,
        first: bool,
    ) -> dict[Budget, Piece]:
        """One batch at these budgets; `first`: of the policy, to be compiled."""
        scores, seconds, found, batch = None, 0.0, {}, self.batches[number]
        if first:
            policy.looking_at(batch)
        start = time.perf_counter()
        policy = policy.looking_at(batch, anew=first)
        looking = time.perf_counter() - start
        for budget in budgets:
            if scores is None or policy.needs_budget:
                scores, seconds = self.scores(policy, batch, key, budget, first=first and scores is None)
            found[budget] = self.run(number, policy, scores, budget, granularity, looking + seconds)
        return found

    def scores(self, policy: Policy, batch: Batch, key: jax.Array, budget: Budget, *, first: bool) -> tuple[Any, float]:
        """The policy's scores and the seconds they took, compilation excluded."""
        spend = policy.spend(batch, budget.of(batch)) if policy.needs_budget else None
        if first:
            jax.block_until_ready(policy.scores(batch, key=key, budget=spend))
        start = time.perf_counter()
        scores = jax.block_until_ready(policy.scores(batch, key=key, budget=spend))
        return scores, time.perf_counter() - start

    def run(
        self, number: int, policy: Policy, scores: Any, budget: Budget, granularity: Granularity, scoring: float
    ) -> Piece:
        """One batch at one budget; `scoring`: the seconds that the scores took."""
        batch, real = self.batches[number], self.real[number]
        spend = policy.spend(batch, budget.of(batch))
        text: dict[str, np.ndarray] = {}
        if self.reader.host is None:
            pruned = partial(_prune, self.lengths[-1], granularity, self.cut)
            select = self._compile(("prune", granularity), pruned, scores, batch, spend)
            start = time.perf_counter()
            keep, kept, short = jax.block_until_ready(select(scores, batch, spend))
            pruning = time.perf_counter() - start
            length = int(np.searchsorted(self.lengths, self._needed[policy.name, budget][number]))
            reading, correct, seconds = self._read(number, short, length)
        else:
            pick = partial(self.reader.host.prune, policy, budget, scores, batch, spend)
            if granularity not in self._picked:
                pick(granularity=granularity, cut=self.cut)
                self._picked.add(granularity)
            start = time.perf_counter()
            keep, kept, sent = pick(granularity=granularity, cut=self.cut)
            pruning = time.perf_counter() - start
            text = {name: values[real] for name, values in sent._asdict().items()}
            reading, correct, seconds = self._ask(number, keep)
        return Piece(
            index=batch.index[real],
            group=batch.group[real],
            context=np.asarray(context_tokens(batch))[real],
            answer_tokens=np.maximum(np.asarray(reading.answer_tokens), 1)[real],
            kept=np.asarray(kept)[real],
            nll_sum=np.asarray(reading.nll_sum)[real],
            em=correct[real],
            keep=np.asarray(keep)[real] if self.shows(number) else None,
            prune_seconds=scoring + pruning,
            model_seconds=seconds,
            **text,
        )

    def _needs(self, policy: Policy, budget: Budget) -> np.ndarray:
        """Tokens of the longest prompt of each batch at this budget, int [batches]."""
        needs = []
        for batch in self.batches:
            fixed = np.sum((batch.role != Role.PAD) & (batch.role != Role.CONTEXT), axis=1)
            kept = np.asarray(budget.of(batch) if policy.swept else policy.spend(batch, budget.of(batch)))
            needs.append(int(np.max(fixed + np.maximum(kept, batch.forced.sum(axis=1)))))
        return np.array(needs)

    def _read(self, number: int, short: Batch, length: int) -> tuple[ReadingLike, np.ndarray, float]:
        """The reader's verdict. A prompt that was read before (every method at keep rate 1, say) is not read again."""
        print_of = hashlib.sha256(np.asarray(short.tokens).tobytes() + np.asarray(short.role).tobytes()).digest()
        if (number, length, print_of) not in self._memo:
            arguments = (self.reader.params, short, np.int32(length))
            read = self._compile(("read",), of_lengths(self.reader.read, self.lengths), *arguments)
            start = time.perf_counter()
            reading = jax.block_until_ready(read(*arguments))
            seconds = time.perf_counter() - start
            correct = np.asarray(reading.exact)
            if self.reader.judge is not None:
                decoder = of_lengths(self.reader.judge.decode, self.lengths)
                decode = self._compile(("decode",), decoder, *arguments, warm=False)  # it is not timed
                correct = self.reader.judge.correct(decode(*arguments), short)
            self._memo[number, length, print_of] = (reading, correct, seconds)
        return self._memo[number, length, print_of]

    def _ask(self, number: int, keep: np.ndarray) -> tuple[ReadingLike, np.ndarray, float]:
        """The host reader's verdict on what a mask leaves of a batch; the same mask is asked for once."""
        assert self.reader.host is not None
        print_of = hashlib.sha256(keep.tobytes()).digest()
        if (number, 0, print_of) not in self._memo:
            start = time.perf_counter()
            reading = self.reader.host.read(self.batches[number], keep)
            self._memo[number, 0, print_of] = (reading, reading.exact, time.perf_counter() - start)
        return self._memo[number, 0, print_of]

    def _compile(self, name: tuple, function: Callable, *arguments: Any, warm: bool = True) -> Any:
        """The function, compiled when first asked for; a `warm` one has then run once on these arguments, so that what
        only its first run costs is in no method's seconds."""
        if name not in self._compiled:
            self._compiled[name] = jax.jit(function).lower(*arguments).compile()
            self.compiles[name[0]] = self.compiles.get(name[0], 0) + 1
            if warm:
                jax.block_until_ready(self._compiled[name](*arguments))
        return self._compiled[name]

    def shown_examples(self, columns: Sequence[Sequence[Piece]]) -> list[Shown]:
        """The first `shown` examples, with what each column kept of them."""
        out = []
        for number, (batch, real) in enumerate(zip(self.batches, self.real)):
            for place, row in enumerate(np.flatnonzero(real)):
                if len(out) == self.shown:
                    return out
                length = int(np.sum(batch.role[row] != Role.PAD))
                masks = [pieces[number].keep for pieces in columns]
                keep = np.stack([mask[place, :length] for mask in masks if mask is not None])
                out.append(Shown(int(batch.index[row]), batch.tokens[row, :length], batch.role[row, :length], keep))
        return out


def _prune(
    length: int, granularity: Granularity, cut: Cut, scores: Any, batch: Batch, budget: Any
) -> tuple[Any, Any, Batch]:
    """The keep mask, the context tokens kept, and the prompts compacted to `length`."""
    pruned = prune(scores, batch, budget, granularity=granularity, cut=cut)
    return pruned.keep, pruned.kept, compact(batch, pruned.keep, length)
