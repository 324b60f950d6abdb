"""Traces: contexts read once by the frozen model, what their entries look like, and what later tokens made of them.

A trace is one context with some questions. It holds the rotated keys and the values of all layers, the measures that a
scorer may see, and for each question how much attention it and its answer paid to each entry. Training a scorer then
needs no reading of a context any more. One file a trace, float16; 2 * layers * entries * kv_heads * head_dim numbers
are nearly all of it (SmolLM2-135M: 23 kB a token). The files of a task lie in a folder named by all that decides
them, and are written whole or not at all, so that a run that was stopped goes on where it was and runs share them. They
are no part of a checkpoint, which would have gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from rcp.config_eviction import EvictionConfig
from rcp.config_fill import fill
from rcp.data.pack import round_up
from rcp.data.tasks import TASKS, Task
from rcp.data.tasks.asked import questions_of
from rcp.data.tasks.base import Split, examples_of
from rcp.eviction.compaction import candidates
from rcp.eviction.learned import MEASURES, as_input, measure_needs
from rcp.eviction.prompt import read_prompt, scores
from rcp.eviction.usefulness import usefulness
from rcp.nn.cache import KVCache
from rcp.pretrained import Pretrained
from rcp.types import Example, Tokenizer, UserError

FORMAT = 3
QUESTION_MULTIPLE = 64
CONTEXT_MULTIPLE = 256
DECIDING = ("questions", "question_tokens", "measures", "hidden")


@dataclass(frozen=True)
class TracePrompt:
    """A context and its questions, token ids."""

    context: list[int]
    questions: list[tuple[list[int], list[int]]]


class Traces:
    """The traces of a run: `len(traces)` of them, `traces.load(i)` a dict of numpy arrays, made when first asked for.

    Keys: k, v [layers, entries, kv_heads, dim]; measured [measures, layers, kv_heads, entries]; hidden, where used
    [layers, entries, model_dim]; largest, mean, asked [questions, layers, kv_heads, entries]; tokens, answer
    [questions, tokens], padded with -1 and False. `entries` is the length of the context.
    """

    def __init__(self, c: EvictionConfig, loaded: Pretrained, split: Split = "train"):
        self._config, self._loaded, self._split = c, loaded, split
        self._tasks = {name: make_task(name, fields) for name, fields in c.tasks.items()}
        self._examples = {
            name: examples_of(task, loaded.tokenizer, split, c.first + c.contexts) for name, task in self._tasks.items()
        }
        # In turn, so that the first traces are of all tasks. A task may have fewer.
        self._places = [
            (name, number)
            for number in range(c.first, c.first + c.contexts)
            for name, found in self._examples.items()
            if number < len(found)
        ]
        self._graph, self._params = nnx.split(loaded.model)
        root = Path(c.folder).expanduser() if c.folder else _cache_folder()
        self._folders = {name: root / self._identity(name) for name in self._tasks}
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Of the task that a trace is of."""
        return self._places[index][0]

    def load(self, index: int) -> dict[str, np.ndarray]:
        if not self._path(index).exists():
            self._make(index)
        found = self._stored(index)
        if index not in self._checked:  # a text file may have changed since an earlier run
            self._checked.add(index)
            if not _same(found, self.asked(index)):
                self._make(index)
                found = self._stored(index)
        return found

    def _stored(self, index: int) -> dict[str, np.ndarray]:
        with np.load(self._path(index)) as file:
            return {name: file[name] for name in file.files}

    def asked(self, index: int) -> TracePrompt:
        """The tokens of a trace."""
        name, number = self._places[index]
        example = self._examples[name][number]
        rng = np.random.default_rng([number, len(example.question)])
        return encode_asked(self._tasks[name], example, self._loaded.tokenizer, self._config, rng)

    def make_all(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Makes all that are not there yet, unless `stopping()` before one; says on stderr how far it is."""
        missing = [index for index in range(len(self)) if not self._path(index).exists()]
        began = time.perf_counter()
        for done, index in enumerate(missing):
            if stopping():
                return
            self._make(index)
            spent = time.perf_counter() - began
            if done in (0, len(missing) - 1) or done % 10 == 9:
                left = spent / (done + 1) * (len(missing) - done - 1)
                print(f"traces {done + 1}/{len(missing)}  {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def _path(self, index: int) -> Path:
        name, number = self._places[index]
        return self._folders[name] / f"{number}.npz"

    def _identity(self, name: str) -> str:
        c, loaded = self._config, self._loaded
        parts = {key: getattr(c, key) for key in DECIDING} | {"task": c.tasks[name], "format": FORMAT}
        parts |= {} if self._split == "train" else {"split": self._split}
        parts |= {"weights": loaded.fingerprint, "dtype": str(jnp.dtype(loaded.model.dtype))}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _make(self, index: int) -> None:
        arrays = read_trace(self._graph, self._params, self.asked(index), self._config)
        path = self._path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # several hosts may make the same trace at once
        with partial_file.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        partial_file.replace(path)


def _same(stored: dict[str, np.ndarray], asked: TracePrompt) -> bool:
    """Whether a trace is of this context, these questions and answers."""
    count, width = stored["tokens"].shape
    sizes = [len(question) + len(answer) for question, answer in asked.questions]
    if stored["context"].tolist() != asked.context or len(sizes) != count or max(sizes) > width:
        return False
    tokens, there, answers = question_rows(asked.questions, count, width)
    return bool((stored["tokens"] == np.where(there, tokens, -1)).all() and (stored["answer"] == answers).all())


def make_task(name: str, fields: dict[str, Any]) -> Task:
    """The task of a section of `eviction.tasks`. Raises UserError on an unknown task or field."""
    rest = {key: value for key, value in fields.items() if key != "name"}
    if fields["name"] not in TASKS:
        known = ", ".join(sorted(TASKS))
        raise UserError(f"config.eviction.tasks.{name}.name is {fields['name']!r}; known tasks: {known}")
    return fill(TASKS[fields["name"]], rest, f"config.eviction.tasks.{name}")


def encode_asked(
    task: Task, example: Example, tokenizer: Tokenizer, c: EvictionConfig, rng: np.random.Generator
) -> TracePrompt:
    """Instruction and context as one row of ids, piece by piece as everywhere; questions cut to their length.

    Raises:
      UserError: the context has more tokens than `eviction.tokens`.
    """
    context = [token for piece in (example.instruction, *example.context) if piece for token in tokenizer.encode(piece)]
    if len(context) > c.tokens:
        raise UserError(
            f"{example.uid}: a context of {len(context)} tokens, config.eviction.tokens is {c.tokens}: expected no more"
        )
    questions = []
    for question, answer in questions_of(task, example, c.questions, rng):
        said = tokenizer.encode(answer)[: c.question_tokens // 2]
        room = c.question_tokens - len(said)
        questions.append((tokenizer.encode(question)[-room:], said))
    return TracePrompt(context, questions)


def read_trace(graph: Any, params: Any, asked: TracePrompt, c: EvictionConfig) -> dict[str, np.ndarray]:
    """Reads a context and its questions; see `Traces`. Compiled once for each padded length of both."""
    length = len(asked.context)
    padded = min(c.tokens, round_up(length, CONTEXT_MULTIPLE))
    tokens = np.zeros((1, padded), np.int32)
    tokens[0, :length] = asked.context
    valid = np.arange(padded)[None] < length
    cache, measured, hidden = _read_context(graph, params, tokens, valid, measures=c.measures, hidden=c.hidden)
    rows = len(asked.questions) if len(asked.questions) == 1 else c.questions
    width = round_up(max(len(q) + len(a) for q, a in asked.questions), QUESTION_MULTIPLE)
    questions, there, answers = question_rows(asked.questions, rows, width)
    found = _ask(graph, params, cache, questions, there, answers)
    count = len(asked.questions)
    arrays = {name: _half(getattr(found, name))[:, :count, :, :length].swapaxes(0, 1) for name in found._fields}
    arrays |= {"k": _half(cache.k)[:, 0, :length], "v": _half(cache.v)[:, 0, :length]}
    arrays["context"] = np.asarray(asked.context, np.int32)
    arrays["measured"] = _half(measured)[:, 0, ..., :length]
    if hidden is not None:
        arrays["hidden"] = _half(hidden)[:, 0, :length]
    return arrays | {"tokens": np.where(there, questions, -1)[:count], "answer": answers[:count]}


def question_rows(
    questions: Sequence[tuple[list[int], list[int]]], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, validity, which are of the answer) [rows, width], padded at the right; rows beyond them are the first's
    again."""
    tokens, there, answer = (np.zeros((rows, width), kind) for kind in (np.int32, bool, bool))
    for row in range(rows):
        question, said = questions[row if row < len(questions) else 0]
        size = len(question) + len(said)
        tokens[row, :size], there[row, :size] = [*question, *said], True
        answer[row, len(question) : size] = True
    return tokens, there, answer


def _half(x: Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float16))


def _cache_folder() -> Path:
    root = os.environ.get("RCP_CACHE_DIR")
    return (Path(root) if root else Path.home() / ".cache" / "rcp") / "traces"


@partial(jax.jit, static_argnames=("graph", "measures", "hidden"))
def _read_context(graph, params, tokens, valid, *, measures, hidden):
    """The whole cache, the measures [measures, batch, layers, kv_heads, entries], and hidden states."""
    model = nnx.merge(graph, params)
    needs = measure_needs(measures)
    if hidden:
        needs = type(needs)(**(vars(needs) | {"hidden": True}))
    read = read_prompt(model, tokens, valid=valid, needs=needs)
    found = candidates(read.cache)
    measured = [as_input(name, scores(model, found, read.statistics, MEASURES[name])) for name in measures]
    nothing = jnp.zeros((0, 1, *found.k.shape[:1], found.k.shape[3], found.k.shape[2]), jnp.float32)
    return read.cache, jnp.stack(measured) if measured else nothing, read.statistics.hidden if hidden else None


@partial(jax.jit, static_argnames=("graph",))
def _ask(graph, params, cache: KVCache, tokens, valid, answer):
    return usefulness(nnx.merge(graph, params), cache, tokens, valid=valid, answer=answer)
