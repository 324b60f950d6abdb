"""Eviction policies on the same contexts: each context is read once, pruned by every policy at every budget, and asked.

What is read before the question (instruction and context) is what a budget counts; every layer and head has an entry
for each of its tokens. Query-agnostic, question and gold answer are read behind what was kept. Query-aware (`aware`),
the question is read with the context, so that policies see it, and is kept beside the budget; its last token is then
taken back and read again, with the answer, behind what was kept, so that the whole cache judges no token of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcp.data.pack import round_up
from rcp.evaluate.asking import AskedBatch, Asking, count_of, in_turn, needed_entries, piece_of
from rcp.evaluate.budgets import Budget
from rcp.evaluate.cache_reader import CacheReader, compiled
from rcp.evaluate.cells import Piece
from rcp.eviction import Full, all_needs
from rcp.eviction.prompt import Eviction, ReadPrompt
from rcp.eviction.reconstruction import repeat_of
from rcp.infer.weights import ModelWeights
from rcp.nn.pruner import compact
from rcp.pretrained import Pretrained
from rcp.types import Batch, Role

ANEW = 64
"""Prompts that are read anew are padded to a multiple of this."""


@dataclass(frozen=True)
class CacheRow:
    """A row of a table: how the cache is pruned; None: the prompt is read anew, with the last tokens of the budget.

    `needed`: what the task says is needed is kept first (the oracle).
    """

    name: str
    eviction: Eviction | None = None
    needed: bool = False


@dataclass
class CacheBench:
    """Measures rows batch by batch. `seconds` says where the time went, compilation excluded; `programs` how many."""

    loaded: Pretrained
    rows: Sequence[CacheRow]
    asking: Asking
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokenizer = self.loaded.tokenizer
        evictions = [row.eviction for row in self.rows if row.eviction is not None]
        needs = all_needs(*(eviction.policy.needs for eviction in evictions))
        options: dict[str, Any] = {"needs": replace(needs, reconstruction=False), "repeat": repeat_of(tokenizer)}
        options |= {"eos_ids": (tokenizer.eos_id,), "pad_id": tokenizer.pad_id}
        options |= {"weights": ModelWeights(self.loaded.model)}  # one copy for all rows, where they decode
        make = partial(CacheReader, self.loaded.model, **options)
        self._readers = {row.name: make(row.eviction or Eviction(Full())) for row in self.rows}
        self._before = compiled()

    @property
    def programs(self) -> dict[str, int]:
        """Compiled programs of each kind since the bench was made."""
        return {name: count - self._before[name] for name, count in compiled().items()}

    def batch(self, batches: Sequence[Batch], wanted: Mapping[str, Sequence[Budget]]) -> dict[tuple[str, str], Piece]:
        """The pieces (row, key of the budget) of a batch of contexts.

        Args:
          batches: of the same contexts, each with another question; rows of weight 0 ask nothing.
          wanted: the budgets of each row.
        """
        found = {}
        rows = [row for row in self.rows if wanted.get(row.name)]
        asked = [AskedBatch.of(batch, self.asking.aware) for batch in batches]
        read, reading = self._read(asked[0], rows)
        again: tuple[ReadPrompt, float] | None = None
        for row in rows:
            state, repeating = read, 0.0
            if row.eviction is not None and row.eviction.policy.needs.reconstruction:
                again = again or self._repeat(row, read, asked[0])
                state, repeating = again
            for budget in wanted[row.name]:
                if row.eviction is None or state is None:
                    piece = self._anew(row, batches, budget)
                else:
                    piece = self._pruned(row, state, asked, budget)
                    seconds = {"prune_seconds": piece.prune_seconds + repeating}
                    piece = replace(piece, **seconds, model_seconds=piece.model_seconds + reading)
                found[row.name, budget.key] = piece
        return found

    def _read(self, asked: AskedBatch, rows: Sequence[CacheRow]) -> tuple[ReadPrompt | None, float]:
        pruned = [row for row in rows if row.eviction is not None]
        if not pruned:
            return None, 0.0
        reader = self._readers[pruned[0].name]
        heads = asked.heads if self.asking.aware else None
        return self._timed("reading contexts", lambda: reader.read(asked.contexts, heads))

    def _repeat(self, row: CacheRow, read: ReadPrompt | None, asked: AskedBatch) -> tuple[ReadPrompt, float]:
        assert read is not None
        rows = [[*context, *head] for context, head in zip(asked.contexts, asked.heads, strict=True)]
        return self._timed("repeating contexts", lambda: self._readers[row.name].repeated(read, rows))

    def _pruned(self, row: CacheRow, read: ReadPrompt, asked: Sequence[AskedBatch], budget: Budget) -> Piece:
        """One row at one budget; `model_seconds` are those of question and answer alone."""
        assert row.eviction is not None
        reader, batch = self._readers[row.name], asked[0].batch
        options: dict[str, Any] = {"keys": self._keys(batch), "take_back": int(self.asking.aware)}
        if row.needed:
            options["forced"] = needed_entries(asked[0], read.cache.capacity, budget, row.eviction.sinks)
        options |= {"keep_rate": budget.rate} if budget.tokens is None else {"keep_tokens": budget.tokens}
        pruned, pruning = self._timed("pruning", lambda: reader.prune(read, **options))
        questions = in_turn([one.tails for one in asked])
        static = {"width": self.asking.width, "max_answer": self.asking.max_answer}
        answers = in_turn([one.answers for one in asked])
        reading, judging = self._timed("answers", lambda: reader.judge(pruned, questions, answers, **static))
        right = np.asarray(reading.exact)
        if self.asking.decode:
            said = [reader.answer(pruned, one.tails, max_new=self.asking.decode) for one in asked]
            right = self._right(in_turn(said), [one.batch for one in asked])
        memory = sum(x.nbytes for run in pruned.context.runs for x in (run.k, run.v, run.position))
        each = np.full(len(batch.index), memory // len(batch.index))
        counts = {"context": pruned.entries, "kept": pruned.kept, "asked": pruned.asked, "bytes": each}
        return piece_of([one.batch for one in asked], reading, right, counts, pruning, judging)

    def _anew(self, row: CacheRow, batches: Sequence[Batch], budget: Budget) -> Piece:
        """The last tokens of the budget and the question, read as a prompt of their own; none at rate 0."""
        c, reader, readings, seconds = self.loaded.config, self._readers[row.name], [], 0.0
        there, count, said = np.zeros(0, int), np.zeros(0, int), []
        for batch in batches:
            before = (batch.role == Role.INSTRUCTION) | (batch.role == Role.CONTEXT)
            there = before.sum(axis=1)
            count = count_of(there, budget)
            keep = ~before | (np.cumsum(before, axis=1) > (there - count)[:, None])
            behind = int((~before & (batch.role != Role.PAD)).sum(axis=1).max())
            length = min(round_up(int(count.max()) + behind, ANEW), batch.tokens.shape[1])
            short = _compact(batch, keep, length=length)
            read = partial(reader.read_anew, short, max_answer=self.asking.max_answer)
            reading, took = self._timed("reading anew", read)
            readings, seconds = [*readings, reading], seconds + took
            if self.asking.decode:
                said.append(reader.decode_anew(short, max_new=self.asking.decode))
        joined = jax.tree.map(lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *readings)
        right = self._right(in_turn(said), batches) if said else np.asarray(joined.exact)
        heads = c.n_layers * c.n_kv_heads
        each = 2 * c.head_dim * jnp.dtype(self.loaded.model.dtype).itemsize
        kept = count * heads
        counts = {"context": there * heads, "kept": kept, "asked": kept, "bytes": kept * each}
        return piece_of(batches, joined, right, counts, 0.0, seconds)

    def _right(self, said: Sequence[Sequence[int]], batches: Sequence[Batch]) -> np.ndarray:
        """Whether the task takes what was decoded for each question of each context."""
        tokenizer, asking = self.loaded.tokenizer, self.asking
        assert asking.check is not None
        asked = in_turn(
            [[own[int(i)] for i in batch.index] for own, batch in zip(asking.examples, batches, strict=True)]
        )
        texts = [tokenizer.decode([i for i in ids if i != tokenizer.eos_id]) for ids in said]
        return np.array([asking.check(text, example) for text, example in zip(texts, asked, strict=True)])

    def _keys(self, batch: Batch) -> jax.Array:
        key = jax.random.key(self.asking.seed)
        return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(batch.index))

    def _timed(self, name: str, call: Callable[[], Any]) -> tuple[Any, float]:
        """What a call gives and its seconds. One that had to compile is made again, and the second time counts."""
        found, took = None, 0.0
        for _ in range(2):
            before, start = compiled(), time.perf_counter()
            found = jax.block_until_ready(call())
            took = time.perf_counter() - start
            if compiled() == before:
                break
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        return found, took


_compact = jax.jit(compact, static_argnames="length")
