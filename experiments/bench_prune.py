"""What pruning costs: seconds to prune a batch of prompts to half, beside the reader's own prefill of the same batch.

    python -m experiments.bench_prune [--batch=64 --tokens=1000 --keep-rate=0.5 --rows=8] [--output=X.json]
    python -m experiments.bench_prune --python=/tmp/beside/bin/python    # in float32, beside the original llmlingua

Scoring, selecting and compacting with three scorers of ours (untrained: what they learned makes no difference to the
time) and with our `llmlingua`, all on the same model; and from text to text with the stand-alone one, the host's part
included: tokenising, meeting the budget to the token, detokenising. With `--python` (of an environment as in
experiments/beside_llmlingua.py) the original llmlingua compresses the same prompts too, one after the other since it
takes no batch, from text to text, in float32. `--rows` prompts are taken at a time, by all in turn, so that a busy
machine slows all alike; seconds are the sums over the prompts, ratios medians over these parts. Everything is compiled
first: from text to text on all parts, which differ in length, else on the first and last.
Targets: the stand-alone scorer at most .15 of the prefill, ours at most 1/3 of llmlingua, the original where it is run;
then ours from text to text, as the original works, too.
Prompts are made of GSM8K training rows, or of facts where there are none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.beside import Foreign, connected
from experiments.beside_llmlingua import BLOCK, INSTALL
from experiments.prompts import long_prompts
from rcp.data.pack import collate, encode, round_up
from rcp.evaluate.lengths import longest
from rcp.infer.prompt import PromptPruner
from rcp.nn.layout import prompt_lengths
from rcp.nn.pieces import piece_states
from rcp.nn.pruner import Granularity, Scores, budget_of_rate, compact, prune
from rcp.nn.scorer import Scorer, ScorerConfig, early_features
from rcp.policies import LLMLingua
from rcp.pretrained import Pretrained, load
from rcp.train.parallel import use_compile_cache
from rcp.types import Batch, Example, Tokenizer, UserError

PREFILL, THEIRS, TEXT = "reader's prefill", "llmlingua", "stand-alone, text to text"
ORIGINAL = "llmlingua, the original, text to text"
ALONE, LAYERS = "stand-alone", {"hidden, 1 layer": ("hidden", 1, 64), "pooled, 4 layers": ("pooled", 4, 32)}
OVER_PREFILL, OVER_THEIRS = 0.15, 1 / 3  # targets

Score = Callable[[Batch], Scores]


def batches_of(examples: Sequence[Example], tokenizer: Tokenizer, rows: int) -> list[Batch]:
    """The prompts without answers, `rows` a batch, all of one shape."""
    encoded = [
        replace(encode(example, tokenizer, index=i), answer=np.zeros(0, np.int32)) for i, example in enumerate(examples)
    ]
    length = round_up(max(example.length for example in encoded), 8)
    segments = max(len(example.context) for example in encoded)
    parts = [encoded[start : start + rows] for start in range(0, len(encoded), rows)]
    return [jax.tree.map(jnp.asarray, collate(part, length, segments, len(part))) for part in parts]


def scorers(model: Any, vocabulary: int) -> dict[str, Score]:
    """Ours: (batch) -> scores, compiled, the parameters given as arguments."""

    def of(kind: Any, layer: int, width: int) -> Score:
        alone, apart = kind == "standalone", kind == "pooled"
        inputs = vocabulary if alone else model.config.d_model
        config = ScorerConfig(kind, inputs, width, heads=4 if alone else 2, apart=apart)
        view = partial(piece_states if apart else early_features, layer=layer)
        graph, state = nnx.split((Scorer(config, nnx.Rngs(0)), model))

        @jax.jit
        def score(state: Any, batch: Batch) -> Scores:
            scorer, reader = nnx.merge(graph, state)
            return scorer(batch, None if alone else view(reader, batch))

        return partial(score, state)

    return {ALONE: of("standalone", 0, 128), **{name: of(*values) for name, values in LAYERS.items()}}


def prefill_of(model: Any) -> Callable[[Batch], Any]:
    """Hidden states of the whole prompt and the logits behind its last token."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, batch: Batch) -> Any:
        reader, lengths = nnx.merge(graph, state), prompt_lengths(batch)
        hidden = reader.hidden(batch.tokens, lengths=lengths)
        return reader.logits(jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0])

    return partial(run, state)


@partial(jax.jit, static_argnames=("granularity", "length"))
def shorten(scores: Scores, batch: Batch, budget: Any, *, granularity: Granularity, length: int) -> Batch:
    return compact(batch, prune(scores, batch, budget, granularity=granularity).keep, length)


def runs_of(
    pretrained: Pretrained, examples: Sequence[Example], rate: float, rows: int
) -> tuple[dict[str, Callable[[int], Any]], int]:
    """What is timed, each a function of the number of a part of the prompts, and how many parts there are."""
    model, tokenizer = pretrained.model, pretrained.tokenizer
    batches = batches_of(examples, tokenizer, rows)
    budgets = [budget_of_rate(batch, rate) for batch in batches]
    fixed = max(int(jnp.max(jnp.sum((b.role > 0) & (b.segment < 0), axis=1))) for b in batches)
    length = round_up(fixed + max(int(jnp.max(budget)) for budget in budgets), 8)
    theirs = LLMLingua.of(model, length=longest(jax.tree.map(np.asarray, batches), (), 1))
    prefill, ours, key = prefill_of(model), scorers(model, tokenizer.vocab_size), jax.random.key(0)
    texts = [
        (["".join(e.context) for e in part], [e.question for e in part])
        for part in (examples[start : start + rows] for start in range(0, len(examples), rows))
    ]

    def pruned(score: Callable[[Batch, Any], Scores], granularity: Granularity, part: int) -> Any:
        batch, budget = batches[part], budgets[part]
        return shorten(score(batch, budget), batch, budget, granularity=granularity, length=length)

    def text(part: int) -> list[str]:
        pruner = PromptPruner(lambda batch, budget: ours[ALONE](batch), tokenizer, "segment")
        return [found.text for found in pruner(*texts[part], keep_rate=rate)]

    runs: dict[str, Callable[[int], Any]] = {PREFILL: lambda part: prefill(batches[part])}
    for name, score in ours.items():
        runs[name] = partial(pruned, lambda batch, budget, score=score: score(batch), "segment")
    runs[TEXT] = text
    runs[THEIRS] = partial(pruned, lambda batch, budget: theirs.scores(batch, key=key, budget=budget), "two_stage")
    return runs, len(batches)


def original_of(
    other: Foreign, tokenizer: Tokenizer, examples: Sequence[Example], rate: float, rows: int
) -> Callable[[int], None]:
    """The original llmlingua on a part of the prompts, with its defaults."""
    targets = [int(rate * sum(len(tokenizer.encode(text)) for text in example.context)) for example in examples]

    def run(part: int) -> None:
        for number in range(part * rows, min((part + 1) * rows, len(examples))):
            segments = [segment.strip() for segment in examples[number].context]
            other.ask(segments=segments, target=targets[number], block=BLOCK, filter=True, look=False)

    return run


def measure(runs: dict[str, Callable[[int], Any]], parts: int) -> dict[str, list[float]]:
    """Seconds of every part, all in turn, in an order that turns round every time."""
    for name, run in runs.items():
        print(f"compiling: {name}", file=sys.stderr, flush=True)
        for part in range(parts) if name == TEXT else sorted({0, parts - 1}):
            jax.block_until_ready(run(part))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for part in range(parts):
        for name in list(runs)[:: 1 if part % 2 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name](part))
            seconds[name].append(time.perf_counter() - start)
        print(f"{part + 1} of {parts} parts", file=sys.stderr, flush=True)
    return seconds


def report(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Sums over the parts; medians and extremes of the ratios within a part, to the original llmlingua where timed."""
    rows, theirs = [], ORIGINAL if ORIGINAL in seconds else THEIRS
    for name, values in seconds.items():
        rows.append({"name": name, "seconds": sum(values)})
        for key, other in (("over_prefill", PREFILL), ("over_llmlingua", theirs)):
            ratios = [a / b for a, b in zip(values, seconds[other], strict=True)]
            rows[-1] |= {key: statistics.median(ratios), f"{key}_low": min(ratios), f"{key}_high": max(ratios)}
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """What is judged, its ratio, and the most that it should be."""
    by_name = {row["name"]: row for row in rows}
    found = [(f"{ALONE} over prefill", by_name[ALONE]["over_prefill"], OVER_PREFILL)]
    compared, other = [ALONE, *LAYERS], THEIRS
    if ORIGINAL in by_name:  # whose like is ours from text to text
        compared, other = [*compared, TEXT], ORIGINAL
    return found + [(f"{name} over {other}", by_name[name]["over_llmlingua"], OVER_THEIRS) for name in compared]


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The flags.

    Raises:
      UserError: the original is to be timed beside another dtype than its own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="prompts")
    parser.add_argument("--tokens", type=int, default=1000, help="of a prompt")
    parser.add_argument("--keep-rate", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=8, help="prompts at a time, which bounds the memory (a part)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    said = "(default: bfloat16; float32, which it must be, with --python)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=said)
    parser.add_argument("--python", help="of an environment that has the original llmlingua, to be timed too")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args(argv)
    arguments.dtype = arguments.dtype or ("float32" if arguments.python else "bfloat16")
    if arguments.python and arguments.dtype != "float32":
        raise UserError(f"--dtype={arguments.dtype}: with --python expected float32, in which the original is timed")
    return arguments


def timed(a: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    pretrained = load(a.model, dtype=a.dtype)
    examples = long_prompts(pretrained.tokenizer, a.batch, a.tokens)
    runs, parts = runs_of(pretrained, examples, a.keep_rate, a.rows)
    if a.python:
        other = connected(a.python, "foreign_llmlingua", INSTALL, pretrained)
        runs[ORIGINAL] = original_of(other, pretrained.tokenizer, examples, a.keep_rate, a.rows)
    return report(measure(runs, parts))


def main(argv: list[str] | None = None) -> int:
    """Prints the table; exit code 1 where ours misses a target, 2 where nothing can be timed."""
    try:
        a = parsed(argv)
        use_compile_cache()
        rows = timed(a)
    except UserError as error:
        print(f"bench_prune: {error}", file=sys.stderr)
        return 2
    print(f"{a.batch} prompts of {a.tokens} tokens to {a.keep_rate:g}, {a.rows} at a time, {a.dtype}")
    print("| | seconds | over prefill [least, most] | over llmlingua [least, most] |\n|---|---|---|---|")
    for row in rows:
        over = [(row[key], row[f"{key}_low"], row[f"{key}_high"]) for key in ("over_prefill", "over_llmlingua")]
        ratios = " | ".join(f"{middle:.3f} [{low:.3f}, {high:.3f}]" for middle, low, high in over)
        print(f"| {row['name']} | {row['seconds']:.2f} | {ratios} |")
    if a.output:
        a.output.parent.mkdir(parents=True, exist_ok=True)
        a.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    judged = verdicts(rows)
    for name, ratio, most in judged:
        print(f"target: {name} {ratio:.3f}, at most {most:.2f}: {'met' if ratio <= most else 'MISSED'}")
    return 0 if all(ratio <= most for _, ratio, most in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
