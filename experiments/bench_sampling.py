"""What the sampler costs: `gumbel_top_k` against `jax.lax.top_k` plus one sort, and the other samplers beside it.

    python experiments/bench_sampling.py [--tokens 4096 --keep 1024 --batch 32 --repeats 30] [--output bench.json]

Each repeat runs every function once, in turn, so that a busy machine slows all of them alike; the ratios are medians
of the per-repeat ratios. The target is a ratio of at most 2 for value and gradient of `gumbel_top_k`. About 20 s on 2
cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rcp import sampling

TARGET = 2.0


def candidates(tokens: int, keep: int, batch: int) -> dict[str, Callable[[], Any]]:
    """Compiled functions without arguments. The first two make up the reference."""
    key = jax.random.key(0)
    logits = jax.random.normal(jax.random.key(1), (batch, tokens))
    budget = jnp.full((batch,), keep, jnp.int32)  # traced, as in training

    def value(logits, budget):
        subset = sampling.gumbel_top_k(key, logits, budget)
        return jnp.sum(subset.log_prob), subset

    def soft(logits, budget):
        noisy = logits + sampling.gumbel_noise(key, logits.shape)
        return jnp.sum(jnp.square(sampling.relaxed_top_k(noisy, budget, 0.5)))

    def unordered(logits, mask):
        return jnp.sum(sampling.set_log_prob(logits, mask))

    mask = sampling.gumbel_top_k(key, logits, budget).mask
    functions = {
        "lax.top_k": (lambda x, k: lax.top_k(x, keep), budget),
        "lax.sort": (lambda x, k: lax.sort(x, dimension=1), budget),
        "gumbel_top_k value": (lambda x, k: value(x, k)[1], budget),
        "gumbel_top_k value and gradient": (jax.value_and_grad(value, has_aux=True), budget),
        "relaxed_top_k value and gradient": (jax.value_and_grad(soft), budget),
        "set_log_prob value and gradient": (jax.value_and_grad(unordered), mask),
    }
    compiled = {}
    for name, (function, argument) in functions.items():
        run = jax.jit(function).lower(logits, argument).compile()
        compiled[name] = lambda run=run, argument=argument: jax.block_until_ready(run(logits, argument))
    return compiled


def measure(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, interleaved."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a function: median milliseconds, and median ratio to `lax.top_k` plus `lax.sort` of the same repeat."""
    reference = [a + b for a, b in zip(seconds["lax.top_k"], seconds["lax.sort"], strict=True)]
    rows = []
    for name, times in [("lax.top_k + lax.sort", reference), *seconds.items()]:
        ratio = statistics.median(t / r for t, r in zip(times, reference, strict=True))
        rows.append({"name": name, "milliseconds": 1e3 * statistics.median(times), "ratio": ratio})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints the table; exit code 1 where `gumbel_top_k` misses the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--keep", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    args = parser.parse_args(argv)
    rows = report(measure(candidates(args.tokens, args.keep, args.batch), args.repeats))
    device = jax.devices()[0].device_kind
    print(
        f"tokens {args.tokens}, kept {args.keep}, batch {args.batch}, {args.repeats} repeats, "
        f"{device}, jax {jax.__version__}"
    )
    print(f"{'':36} {'ms':>9} {'ratio':>7}")
    for row in rows:
        print(f"{row['name']:36} {row['milliseconds']:9.2f} {row['ratio']:7.2f}")
    if args.output:
        setting = {
            "tokens": args.tokens,
            "keep": args.keep,
            "batch": args.batch,
            "repeats": args.repeats,
            "device": device,
        }
        args.output.write_text(json.dumps({**setting, "jax": jax.__version__, "rows": rows}, indent=2) + "\n")
    ratio = next(row["ratio"] for row in rows if row["name"] == "gumbel_top_k value and gradient")
    print(f"gumbel_top_k, value and gradient: {ratio:.2f} times top_k plus one sort (target: at most {TARGET:g})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
