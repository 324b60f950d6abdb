"""What learned eviction keeps and what is answered behind it, beside policies that train nothing, on traces.

    python -m experiments.eviction_look --workdir=runs/eviction --tasks=single,multikey --examples=32

Contexts of the validation split are read once (`rcp.train.traces`), pruned without a question in sight, and asked one
question; all rows and rates of a context are answered in one batch. Exact match is teacher-forced. "golden" knows the
attention that question and answer pay, and is what training aims at. Every row keeps the run's sinks.
Then: which kinds of tokens the scorer keeps at the last rate, of needles and variables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from experiments.ruler import config_of
from rcp import sampling
from rcp.config_eviction import EvictionConfig
from rcp.config_file import load_config
from rcp.data.pack import round_up
from rcp.eviction.allotment import ADA, GLOBAL, UNIFORM, Allotment
from rcp.eviction.compaction import Candidates, mask_entries
from rcp.eviction.learned import Learned
from rcp.eviction.select import guarantees, select
from rcp.infer.trained_eviction import load_eviction
from rcp.pretrained import Pretrained, load
from rcp.train.eviction_step import answer_exact, answer_nll, answer_places, read_answers, score_trace
from rcp.train.parallel import use_compile_cache
from rcp.train.trace_pipeline import TraceBatch, padded_trace, stack
from rcp.train.traces import Traces
from rcp.types import UserError

WIDTHS = 16
"""Question and answer are padded to a multiple of this."""


class Row(NamedTuple):
    """A way to prune: scores by name, and how the budget is shared out."""

    name: str
    scores: str
    allotment: Allotment


def rows_of(c: EvictionConfig) -> list[Row]:
    rows = [Row("random", "random", UNIFORM)]
    rows += [Row(name, name, UNIFORM) for name in c.measures]
    if "expected_attention" in c.measures:
        rows.append(Row("expected_attention+ada", "expected_attention", ADA))
    rows += [
        Row(f"ours+{name}", "ours", share) for name, share in (("uniform", UNIFORM), ("ada", ADA), ("global", GLOBAL))
    ]
    return [*rows, Row("golden+uniform", "golden", UNIFORM), Row("golden+global", "golden", GLOBAL)]


class Bench:
    """The compiled functions of one run."""

    def __init__(self, loaded: Pretrained, policy: Learned, rows: list[Row], rates: tuple[float, ...], sinks: int):
        self._rows, self._rates, self._sinks = rows, rates, sinks
        graph, params = nnx.split(loaded.model)
        self._params = params
        weights = {name: jnp.asarray(x) for name, x in policy.weights.tree.items()}
        frequencies, dtype = loaded.model.frequencies(), loaded.model.dtype

        def masks(batch: TraceBatch, key: Array) -> Bool[Array, "rows layers kv_heads entries"]:
            ours = score_trace(policy.shape, weights, batch, frequencies)
            known = {"ours": ours, "golden": batch.useful, "random": jax.random.uniform(key, ours.shape)}
            measured = jnp.moveaxis(batch.measured.astype(jnp.float32), 2, 0)
            known |= dict(zip(policy.measures, measured))
            slots = jnp.arange(ours.shape[-1], dtype=jnp.int32)
            valid = jnp.broadcast_to(slots[None, None, None] < batch.length[:, None, None, None], ours.shape)
            forced = guarantees(valid, sinks=sinks)
            out = []
            for row in rows:
                for rate in rates:
                    budget = sampling.count_of_rate(batch.length, rate)
                    budgets = jnp.broadcast_to(budget[:, None], ours.shape[:2])
                    found = known[row.scores].astype(jnp.float32)
                    out.append(select(found, budgets, valid=valid, forced=forced, allotment=row.allotment).mask[0])
            return jnp.stack([*out, valid[0]])

        def read(params: Any, batch: TraceBatch, keep: Array) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
            count = len(keep)
            wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), batch)
            k, v = (jnp.swapaxes(x, 0, 1).astype(dtype) for x in (wide.k, wide.v))
            position = jnp.broadcast_to(jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, :, None], k.shape[:4])
            there = position < wide.length[None, :, None, None]
            context = mask_entries(Candidates(k, v, position, there, wide.length), keep)
            log_probs, said = read_answers(graph, params, context, wide), answer_places(wide)
            return answer_nll(log_probs, wide, said), answer_exact(log_probs, wide, said)

        self.masks, self._read = jax.jit(masks), jax.jit(read)

    def answers(self, batch: TraceBatch, keep: Array) -> tuple[np.ndarray, np.ndarray]:
        """(answer NLL, exact match) of every row at every rate, and of the whole cache last."""
        nll, exact = self._read(self._params, batch, keep)
        return np.asarray(nll), np.asarray(exact)


def measured(
    bench: Bench, traces: Traces, c: EvictionConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(number, answer NLL, exact match, which entries are kept) of every trace."""
    for index in range(len(traces)):
        batch = stack([padded_trace(traces.load(index), index, c, np.random.default_rng(index), True)])
        width = round_up(int((batch.tokens >= 0).sum()), WIDTHS)
        batch = batch._replace(tokens=batch.tokens[:, :width], answer=batch.answer[:, :width])
        keep = bench.masks(batch, jax.random.key(index))
        nll, exact = bench.answers(batch, keep)
        print(f"{traces.name(index)} {index + 1}/{len(traces)}", file=sys.stderr, flush=True)
        yield index, nll, exact, np.asarray(keep)


def kinds(text: list[str]) -> list[str]:
    """A kind for each token of a context."""
    joined, out, needle = "", [], 0
    for piece in text:
        joined += piece
        if joined.endswith((" The magic", " One of the magic", " VAR", " The pass")):
            needle = 1
        word = piece.strip()
        out.append("digit" if word.isdigit() else "mark" if not word.isalnum() else "needle" if needle else "filler")
        needle = 0 if piece.endswith(".") else needle
    return out


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run of configs/eviction.py")
    parser.add_argument("--tasks", default="single,multikey,passkey", help="of configs/ruler.py")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--examples", type=int, default=32, help="of each task")
    parser.add_argument("--rates", default=".25,.1")
    parser.add_argument("--folder", default="", help="of the traces (default: as in rcp train)")
    return parser.parse_args(argv)


def measure(o: argparse.Namespace) -> None:
    """Reads, prunes and asks; prints the tables."""
    config = load_config(o.workdir / "config.json")
    told = {name: config_of(name, o.tokens, "", config.model.name).task for name in o.tasks.split(",")}
    tasks = {name: {"name": task.name, **task.fields} for name, task in told.items()}
    values = vars(config.eviction) | {"tasks": tasks, "contexts": o.examples, "first": 0, "questions": 1}
    c = EvictionConfig(**values | {"tokens": o.tokens, "folder": o.folder})
    loaded = load(config.model.name, dtype=config.model.dtype)
    eviction = load_eviction(o.workdir, loaded)
    assert isinstance(eviction.policy, Learned)
    rates, rows = tuple(map(float, o.rates.split(","))), rows_of(c)
    bench = Bench(loaded, eviction.policy, rows, rates, eviction.sinks)
    traces = Traces(c, loaded, "validation")
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in tasks}
    kept: dict[str, list[float]] = {}
    ours = [row.name for row in rows].index("ours+global") * len(rates) + len(rates) - 1
    for index, nll, exact, keep in measured(bench, traces, c):
        found[traces.name(index)].append((nll, exact))
        pieces = [loaded.tokenizer.decode([token]) for token in traces.asked(index).context]
        for place, kind in enumerate(kinds(pieces)):
            kept.setdefault(f"{traces.name(index)} {kind}", []).append(float(keep[ours, ..., place].mean()))
    for name, results in found.items():
        print_table(f"{name}, {o.tokens} tokens, n = {len(results)}", rows, rates, results)
    print(f"\nours+global keeps at {rates[-1]:g}, share of the entries of a kind of token:\n")
    for kind, shares in kept.items():
        print(f"- {kind}: {np.mean(shares):.2f} of {len(shares)}")


def print_table(title: str, rows: list[Row], rates: tuple[float, ...], results: list) -> None:
    """Exact match / answer NLL; the whole cache first."""
    nll, exact = (np.stack(x).mean(axis=0) for x in zip(*results))

    def cell(place: int) -> str:
        return f"{exact[place]:.2f} / {nll[place]:.2f}"

    print(f"\n{title}\n\n| | {' | '.join(f'{rate:g}' for rate in rates)} |\n|---{'|---' * len(rates)}|")
    print(f"| full {f'| {cell(-1)} ' * len(rates)}|")
    for number, row in enumerate(rows):
        print(f"| {row.name} | {' | '.join(cell(number * len(rates) + i) for i in range(len(rates)))} |")


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; exit code 2 where there is nothing to look at."""
    use_compile_cache()
    try:
        measure(parsed(argv))
    except UserError as error:
        print(f"eviction_look: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
