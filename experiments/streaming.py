"""A long text, or a long answer, through a cache of fixed size: memory, cost a token and perplexity over its length.

    python -m experiments.streaming [--lengths=4096,8192,16384,32768 --policy=sinks_window --positions=repacked]
    python -m experiments.streaming --lengths=16384 --positions=original --sinks=0      # the same tables hold all
    python -m experiments.streaming --decode --lengths=1024,4096        # decoded behind the text's first 1,024 tokens

Worked examples of GSM8K's training rows one behind the other (or --text=FILE; where GSM8K's files are not found, facts,
which are cells of their own) are read chunk by chunk as `rcp.eviction.stream` does; a head keeps --size entries. Every
length is a process of its own, so that its peak memory is its own; the peak is that after the first chunk, when the
model is there and the program compiled. With original positions a text longer than the model's positions goes where the
model never was; repacked, positions are those within the cache. Seconds are of reading, evicting and the next tokens'
likelihood, or of decoding greedily, whatever comes, and evicting (`rcp.infer.stream`); compiling is not counted. What
is measured goes into OUTPUT/cells.jsonl and is not measured again; --minutes=0 only draws.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.cell_lines import Cell, CellLines
from experiments.grid import integers
from experiments.prompts import FACTS, GSM8K, long_prompts, source_of
from experiments.streaming_report import SPAN, write_report
from rcp.eviction import POLICIES, STREAMING, stream
from rcp.eviction.position import SinksWindow
from rcp.eviction.prompt import Eviction
from rcp.infer.stream import Spoken, decode_chunk, prefill_stream
from rcp.nn.reader import next_token
from rcp.pretrained import load
from rcp.train.parallel import use_compile_cache
from rcp.types import Tokenizer, UserError

LONGEST = 32_768
"""Tokens of the text that shorter ones are the beginning of."""
MEMORY = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")


@partial(jax.jit, static_argnames=("graph", "eviction"), donate_argnames="state")
def read_chunk(
    graph: Any, params: Any, state: Any, tokens: Any, targets: Any, there: Any, *, eviction: Eviction
) -> Any:
    """What is kept then, and the sum of the NLL of the `targets`, the tokens that come next."""
    model = nnx.merge(graph, params)
    h, state = stream.step(model, state, tokens, eviction)
    return state, jnp.sum(next_token(model, h, targets, there)[0])


@partial(jax.jit, static_argnames=("graph", "eviction", "size", "chunk"))
def read_text(graph: Any, params: Any, tokens: Any, *, eviction: Eviction, size: int, chunk: int) -> Any:
    """The logits after a text, and what is kept of it."""
    return prefill_stream(nnx.merge(graph, params), tokens, eviction, size=size, chunk=chunk)


@partial(jax.jit, static_argnames=("graph", "eviction", "chunk"), donate_argnames="spoken")
def say_chunk(graph: Any, params: Any, spoken: Spoken, *, eviction: Eviction, chunk: int) -> Any:
    """The next tokens, and where decoding stands behind them."""
    return decode_chunk(nnx.merge(graph, params), spoken, eviction, chunk=chunk)


def text_of(tokenizer: Tokenizer, tokens: int, file: Path | None) -> np.ndarray:
    """The first `tokens` ids of the text.

    Raises:
      UserError: a file that cannot be read, or a text that is too short.
    """
    if file is None:
        (example,) = long_prompts(tokenizer, 1, _asked(tokens))
        ids = [token for segment in example.context for token in tokenizer.encode(segment)]
    else:
        try:
            ids = tokenizer.encode(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text={file}: expected a text file in UTF-8 ({error})") from error
    if len(ids) < tokens:
        raise UserError(f"the text has {len(ids)} tokens: expected {tokens} at least")
    return np.asarray(ids[:tokens], np.int32)


def text_name(tokens: int, file: Path | None) -> str:
    """What the first `tokens` ids are of, in a cell's identity."""
    if file is not None:
        return str(file.resolve())
    return "worked examples" if source_of(1, _asked(tokens)) == GSM8K else FACTS


def _asked(tokens: int) -> int:
    """The same text whatever its length, and some more of it, since its question is left out."""
    return max(tokens, LONGEST) + 512


def resident(reset: bool = False) -> int | None:
    """The most memory resident since the last reset, bytes; None where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


class Spans:
    """Seconds of each `SPAN` tokens, and memory from the first chunk on."""

    def __init__(self, chunk: int):
        self._every, self._done = SPAN // chunk, 0
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._before: int | None = None

    def __enter__(self) -> None:
        if self._done % self._every == 0:
            self._start, self._busy = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self._done == 0:
            self._before = resident(reset=True)
        self._done += 1
        if self._done % self._every == 0:
            self.seconds.append(time.perf_counter() - self._start)
            self.cpu.append(time.process_time() - self._busy)

    def found(self, program: Any, state: stream.Stream) -> Cell:
        analysis = program.memory_analysis()
        return {
            "seconds": self.seconds,
            "cpu": self.cpu,
            "resident_before": self._before,
            "resident_peak": resident(),
            "process_peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "program": {name: int(getattr(analysis, name, 0)) for name in MEMORY},
            "entries": int(state.context.runs[0].length.sum()),
            "position": int(state.context.position[0]),
        }


def feed(model: Any, ids: np.ndarray, eviction: Eviction, size: int, chunk: int) -> Cell:
    """Reads a text of a multiple of `SPAN` tokens; per span of it seconds and NLL (nats a token)."""
    graph, params = nnx.split(model)
    state = stream.start(model, eviction, 1, size=size, chunk=chunk)
    targets, there = np.append(ids[1:], 0).astype(np.int32)[None], np.arange(len(ids))[None] < len(ids) - 1
    parts = [tuple(x[:, at : at + chunk] for x in (ids[None], targets, there)) for at in range(0, len(ids), chunk)]
    compiled = read_chunk.lower(graph, params, state, *parts[0], eviction=eviction).compile()
    sums, spans = [], Spans(chunk)
    for part in parts:
        with spans:
            state, total = compiled(params, state, *part)
            sums.append(float(total))
    counts = there.reshape(-1, SPAN).sum(axis=1)
    nll = (np.reshape(sums, (len(counts), -1)).sum(axis=1) / counts).tolist()
    return {"nll": nll, **spans.found(compiled, state)}


def say(model: Any, ids: np.ndarray, eviction: Eviction, size: int, chunk: int, new: int) -> Cell:
    """Reads a text and decodes `new` tokens behind it, a multiple of `SPAN`; per span of them seconds."""
    graph, params = nnx.split(model)
    logits, state = read_text(graph, params, ids[None], eviction=eviction, size=size, chunk=chunk)
    spoken, spans = Spoken(logits, state, jnp.zeros((1,), bool)), Spans(chunk)
    compiled = say_chunk.lower(graph, params, spoken, eviction=eviction, chunk=chunk).compile()
    for _ in range(new // chunk):
        with spans:
            said, spoken = compiled(params, spoken)
            jax.block_until_ready(said)
    return {"nll": [], **spans.found(compiled, spoken.stream)}


def one(options: argparse.Namespace) -> Cell:
    """One length, in this process."""
    loaded = load(options.model, dtype=options.dtype)
    policy = SinksWindow(options.sinks) if options.policy == SinksWindow.name else POLICIES[options.policy]()
    guaranteed = 0 if options.policy == SinksWindow.name else options.sinks
    eviction = Eviction(policy, sinks=guaranteed, repack=options.positions == "repacked")
    (length,) = options.lengths
    given = (eviction, options.size, options.chunk)
    if options.decode:
        found = say(loaded.model, text_of(loaded.tokenizer, SPAN, options.text), *given, length)
    else:
        found = feed(loaded.model, text_of(loaded.tokenizer, length, options.text), *given)
    return {"limit": loaded.config.max_positions, **found}


def run(options: argparse.Namespace, kept: Path) -> list[Cell]:
    """All cells there are, the missing ones of what was asked for added to the file `kept`."""
    lines = CellLines(kept)
    ends = time.monotonic() + 60 * options.minutes
    keys = ("policy", "positions", "sinks", "size", "chunk", "model", "dtype")
    shared = {key: getattr(options, key) for key in keys}
    for length in options.lengths:
        if time.monotonic() >= ends:
            break
        text = text_name(SPAN if options.decode else length, options.text)
        identity = shared | {"text": text} | ({"decode": True} if options.decode else {}) | {"length": length}
        if identity in lines:
            continue
        flags = [f"--{key}={getattr(options, key)}" for key in (*keys, *(("text",) if options.text else ()))]
        flags += ["--decode"] if options.decode else []
        command = [sys.executable, "-m", "experiments.streaming", "--one", f"--lengths={length}", *flags]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            raise UserError(f"{length} tokens: the process that reads them ended with {child.returncode}")
        lines.add(identity, json.loads(child.stdout.splitlines()[-1]))
    return lines.cells


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing and writes the tables and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--lengths", type=integers, default=(4096, 8192, 16384, 32768), help="(default: 4096,8192,16384,32768)")
    names = sorted(name for name in STREAMING if not POLICIES[name].draws)
    add("--decode", action="store_true", help="so many tokens are decoded, not read")
    add("--policy", choices=names, default=SinksWindow.name, help="(default: %(default)s)")
    add("--positions", choices=("repacked", "original"), default="repacked", help="(default: %(default)s)")
    add("--sinks", type=int, default=4, help="first tokens that are always kept (default: %(default)s)")
    add("--size", type=int, default=1024, help="entries a head keeps (default: %(default)s)")
    add("--chunk", type=int, default=256, help="tokens read at a time (default: %(default)s)")
    add("--text", type=Path, help="a text file in place of GSM8K")
    add("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    add("--minutes", type=float, default=1e9, help="begin no length after so long; 0: only draw")
    add("--output", type=Path, default=Path("runs/streaming"), help="(default: %(default)s)")
    add("--one", action="store_true", help="read the one length here and print its numbers")
    options = parser.parse_args(argv)
    use_compile_cache()
    try:
        if SPAN % options.chunk or any(length % SPAN for length in options.lengths):
            raise UserError(f"--lengths: expected multiples of {SPAN}; --chunk: a divisor of it")
        if options.one:
            print(json.dumps(one(options)))
            return 0
        options.output.mkdir(parents=True, exist_ok=True)
        cells = run(options, options.output / "cells.jsonl")
    except UserError as error:
        print(f"streaming: {error}", file=sys.stderr)
        return 2
    print(write_report(cells, options.output), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
