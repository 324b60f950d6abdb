"""A context read once and pruned in its cache, which then answers questions.

Query-agnostic: the context is read and pruned alone, and any number of questions are read behind what was kept.
Query-aware: the question is read with the context, so that policies see it, and decoding goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from rcp import sampling
from rcp.eviction.base import Needs, Statistics
from rcp.eviction.compaction import needed, stepped
from rcp.eviction.prompt import CHUNK, Eviction, ReadPrompt, choose, context_entries, prune, read_prompt, taken_back
from rcp.eviction.reconstruction import Repeat
from rcp.infer.generate import Generated, decode
from rcp.infer.sample import Sampling
from rcp.nn.cache import Context, quantised, repeated_context, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.transformer import Transformer
from rcp.types import UserError


class PrunedContext(NamedTuple):
    """What is left of the contexts of a batch, ready for questions.

    Attributes:
      asked, kept: entries of each example's context, all layers and heads together [batch]; those of a question that
        was read with it are not counted.
      entries: how many there were.
      logits: after the last token read [batch, vocab].
    """

    context: Context
    asked: np.ndarray
    kept: np.ndarray
    entries: np.ndarray
    logits: Array


def answer(
    model: Transformer,
    context: Context,
    tokens: Int[Array, "batch tokens"],
    *,
    valid: Bool[Array, "batch tokens"] | None = None,
    max_new: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    drawn: Sampling | None = None,
) -> Generated:
    """Continuations of `tokens` read behind a context. A context of one example serves every row. For use in `jit`."""
    rows, width = tokens.shape
    if len(context.position) != rows:
        context = repeated_context(context, rows // len(context.position))
    tail = tail_of(context, width + max_new, model.dtype)
    h, tail, _ = read_chunk(model, tokens, tail, context=context, valid=valid, slots=0)
    there = jnp.ones(tokens.shape, bool) if valid is None else valid
    last = jnp.max(jnp.where(there, jnp.arange(width)[None], 0), axis=1)
    logits = model.logits(jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0])
    return decode(
        model, logits, tail, max_new=max_new, eos_ids=eos_ids, pad_id=pad_id, sampling=drawn, context=context
    )[0]


class ContextModel:
    """A model that reads contexts, keeps part of their cache and answers from it. Token ids in, token ids out.

    Compiled programs are kept by shape: lengths are padded to multiples of `multiple`, capacities of what is kept too,
    so that prompts, rates and lengths within these steps share a compile.

    Args:
      repeat: see `rcp.eviction.reconstruction`; for policies that read the prompt twice.
      runs: at most so many runs of layers may differ in capacity.
      int8: what is kept is rounded to 8 bits; tokens read behind it are not.
    """

    def __init__(
        self,
        model: Transformer,
        eviction: Eviction,
        *,
        repeat: Repeat | None = None,
        needs: Needs | None = None,
        chunk: int = CHUNK,
        multiple: int = 64,
        runs: int = 4,
        int8: bool = False,
        eos_ids: Sequence[int] = (),
        pad_id: int = 0,
    ):
        self.eviction = eviction
        self._needs = eviction.policy.needs if needs is None else needs
        if self._needs.reconstruction and repeat is None:
            raise ValueError(
                f"policy {eviction.policy.name!r} needs `repeat`: how the model is asked to repeat a prompt"
            )
        self._graph, self._params = nnx.split(model)
        self._repeat, self._chunk, self._multiple, self._runs = repeat, chunk, multiple, runs
        self._int8 = int8
        self._eos_ids, self._pad_id = tuple(eos_ids), pad_id

    def read(self, contexts: Sequence[Sequence[int]], questions: Sequence[Sequence[int]] | None = None) -> ReadPrompt:
        """Reads contexts, each with its question where policies are to see it.

        Raises:
          UserError: no context, an empty one, or not as many questions.
        """
        asked = [()] * len(contexts) if questions is None else questions
        if not contexts or not all(map(len, contexts)) or len(asked) != len(contexts):
            raise UserError(
                f"{len(contexts)} contexts with {len(asked)} questions: expected at least one context, none of them "
                "empty, and a question for each or none at all"
            )
        rows = [[*context, *question] for context, question in zip(contexts, asked, strict=True)]
        tokens, valid = self._padded(rows)
        lengths = np.asarray([len(context) for context in contexts])
        question = valid & (np.arange(tokens.shape[1])[None] >= lengths[:, None])
        return _read(
            self._graph,
            self._params,
            tokens,
            valid,
            question,
            needs=self._needs,
            chunk=self._chunk,
            repeat=self._repeat,
        )

    def prune(
        self,
        read: ReadPrompt,
        *,
        keep_rate: float = 1.0,
        keep_tokens: int | None = None,
        forced: Bool[Array, "batch entries"] | None = None,
        keys: Array | None = None,
        take_back: int = 0,
    ) -> PrunedContext:
        """Keeps exactly max(1, floor(keep_rate * tokens)) entries a head, the mean over layers and heads.

        Args:
          keep_tokens: in place of a rate: so many entries a head, or all where there are fewer.
          forced, keys: see `rcp.eviction.prompt.choose`.
          take_back: last tokens, of the question, that policies see and that are then to be read again behind the rest.

        Raises:
          UserError: a rate outside (0, 1], or no tokens to keep.
        """
        if not 0 < keep_rate <= 1 or (keep_tokens is not None and keep_tokens < 1):
            raise UserError(f"keep_rate {keep_rate}, keep_tokens {keep_tokens}: expected a rate in (0, 1], tokens > 0")
        most = np.int32(np.iinfo(np.int32).max if keep_tokens is None else keep_tokens)
        kept, capacity, counts = _choose(
            self._graph, self._params, read, np.float32(keep_rate), most, forced, keys, eviction=self.eviction
        )
        capacities = self._capacities(np.asarray(capacity), read.cache.capacity)
        options = {"capacities": capacities, "repack": self.eviction.repack, "int8": self._int8}
        read = read._replace(statistics=Statistics())  # so that readings with other needs share a program
        context = _prune(self._graph, self._params, read, kept, np.int32(take_back), **options)
        asked, left, entries = (np.asarray(x) for x in counts)
        return PrunedContext(context, asked, left, entries, read.logits)

    def answer(
        self, pruned: PrunedContext | Context, questions: Sequence[Sequence[int]], *, max_new: int = 64, drawn=None
    ) -> list[list[int]]:
        """Continuations of questions read behind a context each, or all behind the same one.

        Raises:
          UserError: an empty question, or neither one context nor one for each.
        """
        context = pruned.context if isinstance(pruned, PrunedContext) else pruned
        if not questions or not all(map(len, questions)) or len(context.position) not in (1, len(questions)):
            raise UserError(
                f"{len(questions)} questions for {len(context.position)} contexts: expected one context, or one for "
                "each question, and no empty question"
            )
        tokens, valid = self._padded(questions)
        return self._ids(_answer(self._graph, self._params, context, tokens, valid, drawn, **self._decoding(max_new)))

    def go_on(self, pruned: PrunedContext, *, max_new: int = 64, drawn: Sampling | None = None) -> list[list[int]]:
        """Continuations of what was read, the question with it."""
        out = _go_on(self._graph, self._params, pruned.context, pruned.logits, drawn, **self._decoding(max_new))
        return self._ids(out)

    def _capacities(self, counts: np.ndarray, entries: int) -> tuple[int, ...]:
        """One a layer, which hold `counts` entries of each; there are `entries` slots before pruning."""
        return stepped(counts, self._multiple, self._runs)

    def _decoding(self, max_new: int) -> dict[str, Any]:
        return {"max_new": max_new, "eos_ids": self._eos_ids, "pad_id": self._pad_id}

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        width = -(-max(map(len, rows)) // self._multiple) * self._multiple
        tokens = np.full((len(rows), width), self._pad_id, np.int32)
        valid = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], valid[i, : len(row)] = row, True
        return tokens, valid

    def _ids(self, out: Generated) -> list[list[int]]:
        lengths = np.asarray(out.length)
        return [row[:length].tolist() for row, length in zip(np.asarray(out.tokens), lengths, strict=True)]


@partial(jax.jit, static_argnames=("graph", "needs", "chunk", "repeat"))
def _read(graph, params, tokens, valid, question, *, needs, chunk, repeat):
    model = nnx.merge(graph, params)
    return read_prompt(model, tokens, valid=valid, question=question, needs=needs, chunk=chunk, repeat=repeat)


@partial(jax.jit, static_argnames=("graph", "eviction"))
def _choose(graph, params, read, rate, most, forced, keys, *, eviction):
    """Which entries are kept, how many a head of each layer holds at most, and (asked, kept, there) of each example."""
    model = nnx.merge(graph, params)
    tokens = context_entries(read)
    budget = jnp.minimum(sampling.count_of_rate(tokens, rate), most)
    kept = choose(model, read, eviction, budget, forced=forced, keys=keys)
    heads = kept.keep.shape[2]
    of_context = kept.keep & ~read.question[:, None, None]
    asked = heads * kept.budget.sum(axis=1)
    there = heads * kept.budget.shape[1] * tokens
    return kept, needed(kept.keep), (asked, of_context.sum(axis=(1, 2, 3)), there)


@partial(jax.jit, static_argnames=("graph", "capacities", "repack", "int8"))
def _prune(graph, params, read, kept, take_back, *, capacities, repack, int8):
    context = prune(nnx.merge(graph, params), *taken_back(read, kept, take_back), capacities, repack=repack)
    return quantised(context) if int8 else context


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def _answer(graph, params, context, tokens, valid, drawn, *, max_new, eos_ids, pad_id):
    model = nnx.merge(graph, params)
    options = {"max_new": max_new, "eos_ids": eos_ids, "pad_id": pad_id}
    return answer(model, context, tokens, valid=valid, drawn=drawn, **options)


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def _go_on(graph, params, context, logits, drawn, *, max_new, eos_ids, pad_id):
    model = nnx.merge(graph, params)
    tail = tail_of(context, max_new, model.dtype)
    options = {"max_new": max_new, "eos_ids": eos_ids, "pad_id": pad_id}
    return decode(model, logits, tail, sampling=drawn, context=context, **options)[0]
