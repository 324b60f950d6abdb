"""Answers behind a pruned context by trained runs that may have models of their own, at once or through a stream.

    python -m experiments.eviction_answers --rows=full,shorter,random,snapkv,runs/eviction
    python -m experiments.eviction_answers --model-of=runs/eviction_lora --rows=full,shorter,random,snapkv
    python -m experiments.eviction_answers --stream=128 --rows=full,shorter,random,sinks_window,runs/eviction_stream

Contexts of RULER-style tasks (configs/ruler.py) are read without a question in sight, by the functions that training
reads them with (`rcp.train.eviction_reading`), and asked one question; exact match is teacher-forced. At once, a
context is read whole and then pruned to each of --rates. With --stream it passes through a cache of so many entries a
head, --chunk tokens at a time, and what is held in the end answers. A row is a policy, the folder of a trained run,
"full" (the whole cache) or "shorter" (as many of the last tokens, read as a prompt of their own); all but these keep
the first 4 entries. The model is the published one, --model-of a run that trained its own; a run among the rows that
trained its own brings it along. What is measured goes into OUTPUT/cells.jsonl, a line a row, task and budget, and is
not measured again. Intervals are 95 % bootstraps over contexts, differences to the last row paired. Seconds a context
are of reading, pruning and answering, what had to be compiled included.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.cell_lines import Cell, CellLines
from experiments.grid import numbers, words
from experiments.ruler import DATASETS, config_of
from rcp import sampling
from rcp.config_eviction import EvictionConfig
from rcp.data.pack import encode, round_up
from rcp.data.tasks.base import Split, examples_of
from rcp.evaluate.subject import described, digest_of
from rcp.evaluate.tables import bootstrap_means, interval
from rcp.eviction import POLICIES
from rcp.eviction.compaction import mask_entries
from rcp.eviction.prompt import Eviction
from rcp.infer.trained_eviction import load_tuned
from rcp.pretrained import Pretrained, load
from rcp.train.build import make_task
from rcp.train.eviction_reading import read_context
from rcp.train.eviction_step import answer_exact, answer_nll, answer_places, read_answers
from rcp.train.parallel import use_compile_cache
from rcp.train.traces import question_rows
from rcp.types import UserError

FULL, SHORTER = "full", "shorter"
SINKS, WIDTHS, RESAMPLES = 4, 16, 1000
BATCH = 8
"""Contexts at a time where --batch-size does not say; rows that draw have another identity with any other number."""


class Row(NamedTuple):
    """What is measured. `eviction` None keeps all. `weights`: digest of the model's parameters."""

    name: str
    graph: Any
    params: Any
    eviction: Eviction | None
    weights: str


class Prompts(NamedTuple):
    """Contexts, padded with -1 at the left, each with a question and its answer, padded at the right."""

    context: Any  # int32 [B, C]
    tokens: Any  # int32 [B, T]
    answer: Any  # bool [B, T]


def rows_of(o: argparse.Namespace, loaded: Pretrained) -> list[Row]:
    """Raises UserError on a name that is neither a policy that can be measured so nor the folder of a run."""
    model = load_tuned(o.model_of, loaded).model if o.model_of else loaded.model
    rows = []
    for name in o.rows:
        own, eviction = model, None
        if name in (FULL, SHORTER):
            pass
        elif name in POLICIES:
            policy = POLICIES[name]()
            if policy.needs.reconstruction or policy.asks or (o.stream and not policy.streams):
                raise UserError(f"--rows: {name} cannot be measured so: expected a policy that reads a context once")
            eviction = Eviction(policy, sinks=SINKS)
        else:
            found = load_tuned(name, loaded)
            if o.stream and not found.eviction.policy.streams:
                raise UserError(
                    f"--rows: {name} cannot stream: expected a run like those of configs/eviction.py:stream"
                )
            own, eviction = found.model if found.tuned else model, replace(found.eviction, sinks=SINKS)
        graph, params = nnx.split(own)
        rows.append(Row(Path(name).name, graph, params, eviction, digest_of(params)))
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--rows: two are called {twice[0]}; rename a folder")
    return rows


def prompts_of(o: argparse.Namespace, loaded: Pretrained, task: str) -> list[Prompts]:
    """The prompts of a task in batches of one shape."""
    found = examples_of(make_task(config_of(task, o.tokens)), loaded.tokenizer, o.split, o.examples)
    each = [encode(example, loaded.tokenizer) for example in found]
    contexts = [np.concatenate([one.instruction, *one.context]) for one in each]
    length = round_up(max(map(len, contexts)), o.chunk)
    width = round_up(max(len(one.question) + len(one.answer) for one in each), WIDTHS)
    asked = [(one.question.tolist(), one.answer.tolist()) for one in each]
    tokens, there, answer = question_rows(asked, len(asked), width)
    padded = [np.pad(ids, (length - len(ids), 0), constant_values=-1) for ids in contexts]
    whole = Prompts(np.stack(padded).astype(np.int32), np.where(there, tokens, -1), answer)
    size = min(o.batch_size, len(each))
    places = np.arange(-(-len(each) // size) * size) % len(each)  # what fills the last batch is cut off afterwards
    return [Prompts(*(x[part] for x in whole)) for part in places.reshape(-1, size)]


@partial(jax.jit, static_argnames=("graph", "eviction", "stream", "chunk"))
def judged(
    graph: Any, params: Any, prompts: Prompts, budget: Any, keys: Any, *, eviction: Any, stream: int, chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(answer NLL in nats a token, exact match, entries held over those that were read) of each example."""
    c = EvictionConfig(reading="anew", heads="own", stream_size=stream, chunk=chunk)
    last = read_context(nnx.merge(graph, params), eviction, c, prompts.context, budget, keys=keys).last
    keep = last.subset(eviction.shared, most=stream or None).mask
    log_probs, said = read_answers(graph, params, mask_entries(last.found, keep), prompts), answer_places(prompts)
    read = jnp.sum(prompts.context >= 0, axis=1) * (keep.shape[1] * keep.shape[2])
    held = keep.sum(axis=(1, 2, 3)) / read
    return answer_nll(log_probs, prompts, said), answer_exact(log_probs, prompts, said), held


def measure(o: argparse.Namespace, row: Row, batches: Sequence[Prompts], budget: float) -> Cell:
    """A row at a budget: a share of each context, or the size of the stream."""
    found, start = [], time.perf_counter()
    for number, batch in enumerate(batches):
        lengths = np.sum(batch.context >= 0, axis=1)
        kept = np.full(len(lengths), int(budget)) if o.stream else np.asarray(sampling.count_of_rate(lengths, budget))
        stream, eviction = o.stream, row.eviction
        if eviction is None:
            place = np.arange(batch.context.shape[1])[None]
            last = place >= batch.context.shape[1] - kept[:, None]
            context = np.where(last, batch.context, -1) if row.name == SHORTER else batch.context
            batch = batch._replace(context=context)
            kept, stream, eviction = np.sum(context >= 0, axis=1), 0, Eviction(POLICIES["sinks_window"]())
        keys = jax.random.split(jax.random.key(number), len(lengths))
        given = (row.graph, row.params, batch, kept.astype(np.int32), keys)
        found.append(judged(*given, eviction=eviction, stream=stream, chunk=o.chunk))
    nll, exact, held = (np.concatenate([np.asarray(x) for x in part])[: o.examples] for part in zip(*found))
    shares = {"nll": nll.tolist(), "em": exact.astype(int).tolist(), "held": float(held.mean())}
    return shares | {"seconds": time.perf_counter() - start}


def drawn_by(o: argparse.Namespace, row: Row) -> dict[str, int]:
    """What decides a row's draws beside the rest of its identity: keys go by the batch and the place in it."""
    size = min(o.batch_size, o.examples)
    draws = row.eviction is not None and row.eviction.policy.draws
    return {"batch_size": size} if draws and size != min(BATCH, o.examples) else {}


def run(o: argparse.Namespace) -> str:
    """Measures what is missing; returns the tables in Markdown."""
    loaded = load(o.model, dtype=o.dtype)
    rows = rows_of(o, loaded)
    o.output.mkdir(parents=True, exist_ok=True)
    lines = CellLines(o.output / "cells.jsonl")
    shared = {key: getattr(o, key) for key in ("model", "dtype", "split", "tokens", "examples", "stream", "chunk")}
    budgets = [float(o.stream)] if o.stream else list(o.rates)
    tables = []
    for task in o.tasks:
        batches: list[Prompts] = []
        cells: dict[tuple[str, float], Cell] = {}
        for row in rows:
            for budget in budgets:
                own = {"task": task, "row": row.name, "weights": row.weights, "eviction": described(row.eviction)}
                own |= drawn_by(o, row)
                identity = shared | own | {"budget": 1.0 if row.name == FULL else budget}
                if identity not in lines:
                    batches = batches or prompts_of(o, loaded, task)
                    lines.add(identity, measure(o, row, batches, budget))
                    print(f"{task} {row.name} {budget:g}", file=sys.stderr, flush=True)
                cells[row.name, budget] = next(cell for cell in lines.cells if cell["identity"] == identity)
        tables.append(table(o, task, [row.name for row in rows], budgets, cells))
    return "\n".join(tables)


def table(
    o: argparse.Namespace,
    task: str,
    names: Sequence[str],
    budgets: Sequence[float],
    cells: dict[tuple[str, float], Cell],
) -> str:
    """Exact match and answer NLL of a task with intervals, and the last row less each in NLL."""
    n = len(cells[names[0], budgets[0]]["nll"])
    kept = [f"{budget:g} entries" if o.stream else f"{100 * budget:g} %" for budget in budgets]
    title = f"### {task}, {o.tokens} tokens, n = {n}"
    columns = ("exact match", "NLL", f"{names[-1]} less it, NLL", "s a context")
    head = ["", *(f"{what}, {k}" for k in kept for what in columns)]
    out = [title, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names:
        line = [name]
        for budget in budgets:
            own, last = cells[name, budget], cells[names[-1], budget]
            em, nll, last_nll = (np.asarray(x, np.float64) for x in (own["em"], own["nll"], last["nll"]))
            line += [_mean(em), _mean(nll), "" if name == names[-1] else _mean(last_nll - nll)]
            line.append(f"{own['seconds'] / n:.2f}")
        out.append(f"| {' | '.join(line)} |")
    return "\n".join([*out, ""])


def _mean(values: np.ndarray) -> str:
    low, high = interval(bootstrap_means(values[None], RESAMPLES, [0])[0])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--rows", type=words, default=(FULL, SHORTER, "random", "sinks_window", "snapkv"), help="see above")
    add("--model-of", type=Path, help="the folder of a run whose model takes the place of the published one")
    add("--tasks", type=words, default=("single", "multikey", "tracking"), help=f"some of {','.join(DATASETS)}")
    add("--tokens", type=int, default=512, help="of a context (default: %(default)s)")
    add("--examples", type=int, default=64, help="of each task (default: %(default)s)")
    add("--rates", type=numbers, default=(0.25, 0.1), help="kept, at once (default: .25,.1)")
    add("--stream", type=int, default=0, help="entries that a head holds of a stream; 0: at once")
    add("--chunk", type=int, default=128, help="tokens of a stream read at a time (default: %(default)s)")
    splits: tuple[Split, ...] = ("validation", "test")
    add("--split", choices=splits, default="validation", help="(default: %(default)s)")
    add("--batch-size", type=int, default=BATCH, help="contexts at a time (default: %(default)s)")
    add("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    add("--output", type=Path, default=Path("runs/eviction_answers"), help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing and prints the tables."""
    use_compile_cache()
    try:
        print(run(parsed(argv)), end="")
    except UserError as error:
        print(f"eviction_answers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
