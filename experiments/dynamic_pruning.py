"""Perplexity against the share of context dropped: dynamic context pruning, learned eviction, and the comparisons.

    rcp train --config=configs/dynamic.py --workdir=runs/dynamic
    rcp train --config=configs/eviction.py:stream --workdir=runs/eviction_stream
    rcp tables dynamic_pruning --runs=runs [--windows=48 --tokens=256]

Text is what the run of configs/dynamic.py was trained on, of its test split, in windows; every token's likelihood
counts. Dynamic context pruning drops what its tokens drop; `--shifts` are added to its bias, so that one run gives
the whole curve. A policy reads the window as `rcp.eviction.stream` does, `--chunk` tokens at a time, and keeps
`--sizes` entries of every head after each. So every token sees the past that was not dropped yet. "Dropped" is the
share of pairs of a token and an earlier one, over layers and heads, in which the earlier one was gone. Policies read
the published weights, dynamic pruning those that its run has tuned; each is held against the same weights with nothing
dropped, and `sinks_window, tuned` shows what tuning alone does. A model trained from scratch has these weights alone.
Policies that want the whole prompt at once (kvzip, pyramidkv's allotment) cannot read a stream. What is measured goes
into OUTPUT/cells and is not measured again; --minutes=0 only draws.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.cell_lines import Cell, CellLines
from experiments.dynamic_report import write_report
from experiments.grid import integers, numbers, words
from rcp.data.tasks.base import examples_of
from rcp.data.tasks.long_text import LongText
from rcp.evaluate.subject import described, digest_of
from rcp.eviction import POLICIES, STREAMING, UNIFORM, dynamic, stream
from rcp.eviction.prompt import Eviction
from rcp.infer.trained_dynamic import TrainedDynamic, load_dynamic
from rcp.infer.trained_eviction import load_eviction
from rcp.nn.reader import next_token
from rcp.pretrained import Pretrained, load
from rcp.train.parallel import use_compile_cache
from rcp.types import UserError

NAME = "dynamic_pruning"
PUBLISHED, TUNED, OURS = "published", "tuned", "ours"
SINKS = 4
LONGER = 64
"""Windows end with a sentence, so longer ones are asked for, and cut."""
CONTROL = "sinks_window"
"""The policy that reads the tuned weights too."""

Window = Callable[[Any, Any], tuple[Any, Any]]
"""From parameters and tokens [batch, tokens] to the NLL of each next token and how much each token saw."""


@dataclass(frozen=True)
class Point:
    """One point of a curve: a method at a size (entries a head) or a shift (of the bias), on some weights."""

    method: str
    weights: str
    size: int = 0
    shift: float = 0.0


def points(options: argparse.Namespace, methods: Sequence[str], weights: str) -> Iterator[Point]:
    """All that is to be measured, the policies on these weights."""
    yield Point("full", weights)
    for method in methods:
        yield from (Point(method, weights, size=size) for size in options.sizes)
    if weights != TUNED:
        yield Point("full", TUNED)
        yield from (Point(CONTROL, TUNED, size=size) for size in options.sizes)
    yield from (Point("dynamic", TUNED, shift=shift) for shift in options.shifts)


def windows_of(trained: TrainedDynamic, count: int, tokens: int) -> np.ndarray:
    """Token ids [count, tokens] of the test split.

    Raises:
      UserError: the split has fewer windows, or the run was trained on something else than windows of text.
    """
    if not isinstance(trained.task, LongText):
        raise UserError(f"the run was trained on {trained.config.task.name}: expected solutions or long_text")
    longer = replace(trained.task, tokens=tokens + LONGER)
    found = []
    for example in examples_of(longer, trained.tokenizer, "test", None):
        ids = trained.tokenizer.encode("".join((*example.context, example.question, example.answer)))
        if len(ids) >= tokens:
            found.append(ids[:tokens])
        if len(found) == count:
            return np.asarray(found, np.int32)
    raise UserError(f"--windows={count}: the test split has {len(found)} of {tokens} tokens")


def _next(model: Any, h: Any, tokens: Any) -> Any:
    """NLL of each next token; the last token's is 0."""
    there = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None] < tokens.shape[1] - 1, tokens.shape)
    return next_token(model, h, jnp.roll(tokens, -1, axis=1), there)[0]


@partial(jax.jit, static_argnames="graph")
def read_whole(graph: Any, params: Any, tokens: Any) -> Any:
    model = nnx.merge(graph, params)
    seen = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.float32), tokens.shape)
    return _next(model, model.hidden(tokens), tokens), seen


@partial(jax.jit, static_argnames="graph")
def read_dynamic(graph: Any, params: Any, interaction: Any, shift: Any, tokens: Any) -> Any:
    model = nnx.merge(graph, params)
    found = dynamic.read(model, interaction, dynamic.start(model, interaction, len(tokens)), tokens, shift=shift)
    return _next(model, found.h, tokens), found.visible.astype(jnp.float32).mean(axis=0)


@partial(jax.jit, static_argnames=("graph", "eviction", "size", "chunk"))
def read_stream(graph: Any, params: Any, keys: Any, tokens: Any, *, eviction: Eviction, size: int, chunk: int) -> Any:
    model = nnx.merge(graph, params)
    batch, count = tokens.shape
    parts = jnp.moveaxis(tokens.reshape(batch, count // chunk, chunk), 1, 0)

    def step(state: Any, each: Any) -> Any:
        part, own = each
        there = state.context.runs[0].length.astype(jnp.float32).mean(axis=(0, 2))
        h, after = stream.step(model, state, part, eviction, keys=own)
        return after, (h, there[:, None] + jnp.arange(chunk))

    start = stream.start(model, eviction, batch, size=size, chunk=chunk)
    own = jax.vmap(lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))(jnp.arange(len(parts)))
    _, (h, seen) = jax.lax.scan(step, start, (parts, own))
    h, seen = (jnp.moveaxis(x, 0, 1).reshape(batch, count, *x.shape[3:]) for x in (h, seen))
    return _next(model, h, tokens), seen


def reader_of(point: Point, model: Any, interaction: Any, eviction: Eviction | None, chunk: int) -> Window:
    """How a point reads windows."""
    graph, params = nnx.split(model)
    if point.method == "full":
        return lambda tokens, keys: read_whole(graph, params, tokens)
    if eviction is None:
        return lambda tokens, keys: read_dynamic(graph, params, interaction, np.float32(point.shift), tokens)
    how = {"eviction": eviction, "size": point.size, "chunk": chunk}
    return lambda tokens, keys: read_stream(graph, params, keys, tokens, **how)


def measure(read: Window, windows: np.ndarray, batch: int, seed: int) -> Cell:
    """Mean NLL (nats a token) and share dropped of each window."""
    nll, dropped, pairs = [], [], np.arange(windows.shape[1]).sum()
    for at in range(0, len(windows), batch):
        part = windows[at : at + batch]
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.arange(at, at + len(part)))
        own, seen = read(part, keys)
        nll += (np.asarray(own, np.float64).sum(axis=1) / (windows.shape[1] - 1)).tolist()
        dropped += (1 - np.asarray(seen, np.float64).sum(axis=1) / pairs).tolist()
    return {"nll": nll, "dropped": dropped}


def evictions_of(options: argparse.Namespace, loaded: Pretrained | None) -> dict[str, Eviction]:
    """The methods that there are; "ours" only where it is trained.

    Raises:
      UserError: a run that cannot read a stream.
    """
    found = {name: Eviction(POLICIES[name](), UNIFORM, sinks=SINKS) for name in options.methods if name != OURS}
    if OURS not in options.methods or loaded is None:
        return found
    folder = options.runs / "eviction_stream"
    try:
        policy = load_eviction(folder, loaded).policy
    except UserError as error:
        print(f"{OURS} is left out: {error}", file=sys.stderr)
        return found
    if not policy.streams:
        raise UserError(f"the run in {folder} scores whole tokens: train configs/eviction.py:stream")
    return found | {OURS: Eviction(policy, UNIFORM, sinks=SINKS)}


def run(options: argparse.Namespace, kept: Path) -> list[Cell]:
    """All cells there are, the missing ones of what was asked for added to the file `kept`."""
    lines = CellLines(kept)
    if options.minutes == 0:
        return lines.cells
    ends = time.monotonic() + 60 * options.minutes
    trained = load_dynamic(options.runs / "dynamic", dtype=options.dtype)
    name = trained.config.model.name
    loaded = None if name == "scratch" else load(name, dtype=options.dtype)
    evictions = evictions_of(options, loaded)
    models = {TUNED: trained.model} | ({PUBLISHED: loaded.model} if loaded else {})
    windows = windows_of(trained, options.windows, options.tokens)
    shared = {"tokens": options.tokens, "chunk": options.chunk, "dtype": options.dtype, "step": trained.step}
    state = (trained.interaction, nnx.to_pure_dict(nnx.state(trained.model)))
    shared |= {
        "windows": options.windows,
        "model": trained.weights,
        "run": digest_of(state),
        "text": digest_of(windows),
    }
    known = {CONTROL: Eviction(POLICIES[CONTROL](), UNIFORM, sinks=SINKS)} | evictions
    for point in points(options, tuple(evictions), PUBLISHED if loaded else TUNED):
        eviction = known.get(point.method)
        identity = vars(point) | shared | {"eviction": described(eviction)}
        if identity in lines or time.monotonic() >= ends:
            continue
        read = reader_of(point, models[point.weights], trained.interaction, eviction, options.chunk)
        found = measure(read, windows, options.batch_size, 0)
        lines.add(identity, found)
        said = f"NLL {np.mean(found['nll']):.4f}, {np.mean(found['dropped']):.3f} dropped"
        print(f"{point.method}, {point.weights}, {point.size or point.shift:g}: {said}", file=sys.stderr, flush=True)
    return lines.cells


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing and writes the table and the figure."""
    parser = argparse.ArgumentParser(
        prog=f"rcp tables {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/tables"), help=f"gets {NAME}.md, .csv, .tex, .png and cells/")
    add("--runs", type=Path, default=Path("runs"), help="folder of the runs dynamic, eviction_stream")
    add("--windows", type=int, default=48, help="windows of text (default: %(default)s)")
    add("--tokens", type=int, default=256, help="of a window, a multiple of --chunk (default: %(default)s)")
    add("--chunk", type=int, default=16, help="tokens read before entries are evicted (default: %(default)s)")
    add("--methods", type=words, default=(*STREAMING, OURS), help=f"default: {','.join((*STREAMING, OURS))}")
    add("--sizes", type=integers, default=(128, 64, 32, 16), help="entries a head (default: 128,64,32,16)")
    add("--shifts", type=numbers, default=(2.0, 1.0, 0.0, -1.0, -2.0, -4.0), help="default: 2,1,0,-1,-2,-4")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: %(default)s")
    add("--batch-size", type=int, default=8, help="windows at a time (default: %(default)s)")
    add("--minutes", type=float, default=1e9, help="stop measuring after so long; 0: only draw")
    add("--bootstrap", type=int, default=2000, help="resamples behind the 95 %% intervals (default: %(default)s)")
    options = parser.parse_args(argv)
    known = (*STREAMING, OURS)
    if unknown := [name for name in options.methods if name not in known]:
        raise UserError(f"--methods: {unknown[0]!r} cannot read a stream; expected some of {','.join(known)}")
    if options.tokens % options.chunk or options.tokens < 2:
        raise UserError(f"--tokens={options.tokens}: expected a multiple of --chunk, {options.chunk}")
    if min(options.sizes, default=SINKS) < SINKS:
        raise UserError(f"--sizes={min(options.sizes)}: expected at least {SINKS}, the sinks that every head keeps")
    use_compile_cache()
    kept = options.output / "cells" / f"{NAME}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    print(write_report(options.output, run(options, kept), options.bootstrap))
    return 0
