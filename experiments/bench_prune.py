"""What pruning costs: seconds to prune a batch of prompts to half, beside the reader's own prefill of the same batch.

    python -m experiments.bench_prune [--batch=64 --tokens=1000 --keep-rate=0.5 --repeats=3 --rows=8] [--output=X.json]

Scoring, selecting and compacting with three scorers of ours (untrained: what they learned makes no difference to the
time) and with our `llmlingua`, all on the same model; and from text to text with the stand-alone one, the host's part
included: tokenising, meeting the budget to the token, detokenising. Everything is compiled first, takes `--rows`
prompts at a time, and runs in turn within a repeat, so that a busy machine slows all alike; ratios are medians over the
repeats. Targets: the stand-alone scorer at most .15 of the prefill, ours at most 1/3 of llmlingua. Prompts are made of
GSM8K training rows, or of facts where there are none. About 10 minutes at the defaults on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench_step import measure
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
from rcp.types import Batch, Example, Tokenizer

PREFILL, THEIRS, TEXT = "reader's prefill", "llmlingua", "stand-alone, text to text"
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
) -> dict[str, Callable[[], Any]]:
    """What is timed, each over the whole batch of prompts."""
    model, tokenizer = pretrained.model, pretrained.tokenizer
    batches = batches_of(examples, tokenizer, rows)
    budgets = [budget_of_rate(batch, rate) for batch in batches]
    fixed = max(int(jnp.max(jnp.sum((b.role > 0) & (b.segment < 0), axis=1))) for b in batches)
    length = round_up(fixed + max(int(jnp.max(budget)) for budget in budgets), 8)
    theirs = LLMLingua.of(model, length=longest(jax.tree.map(np.asarray, batches), (), 1))
    prefill, ours, key = prefill_of(model), scorers(model, tokenizer.vocab_size), jax.random.key(0)

    def pruned(score: Callable[[Batch, Any], Scores], granularity: Granularity) -> Any:
        parts = zip(batches, budgets)
        return [shorten(score(b, k), b, k, granularity=granularity, length=length) for b, k in parts]

    def text() -> list[Any]:
        pruner = PromptPruner(lambda batch, budget: ours[ALONE](batch), tokenizer, "segment")
        parts = [examples[start : start + rows] for start in range(0, len(examples), rows)]
        texts = [(["".join(e.context) for e in part], [e.question for e in part]) for part in parts]
        return [found.text for contexts, questions in texts for found in pruner(contexts, questions, keep_rate=rate)]

    runs: dict[str, Callable[[], Any]] = {PREFILL: lambda: [prefill(batch) for batch in batches]}
    for name, score in ours.items():
        runs[name] = partial(pruned, lambda batch, budget, score=score: score(batch), "segment")
    runs[TEXT] = text
    runs[THEIRS] = partial(pruned, lambda batch, budget: theirs.scores(batch, key=key, budget=budget), "two_stage")
    return runs


def report(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Medians, extremes, and medians of the ratios within a repeat."""
    rows = []
    for name, values in seconds.items():
        over = {
            other: statistics.median(a / b for a, b in zip(values, seconds[other], strict=True))
            for other in (PREFILL, THEIRS)
        }
        rows.append({"name": name, "seconds": statistics.median(values), "low": min(values), "high": max(values)})
        rows[-1] |= {"over_prefill": over[PREFILL], "over_llmlingua": over[THEIRS]}
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints the table; exit code 1 where ours misses a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="prompts")
    parser.add_argument("--tokens", type=int, default=1000, help="of a prompt")
    parser.add_argument("--keep-rate", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="prompts at a time, which bounds the memory")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args(argv)
    use_compile_cache()
    pretrained = load(arguments.model, dtype=arguments.dtype)
    examples = long_prompts(pretrained.tokenizer, arguments.batch, arguments.tokens)
    runs = runs_of(pretrained, examples, arguments.keep_rate, arguments.rows)
    rows = report(measure(runs, arguments.repeats))
    a = arguments
    print(f"{a.batch} prompts of {a.tokens} tokens to {a.keep_rate:g}, {a.rows} at a time, {a.repeats} repeats")
    print("| | seconds [least, most] | over prefill | over llmlingua |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['seconds']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
            f"| {row['over_prefill']:.3f} | {row['over_llmlingua']:.3f} |"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    by_name = {row["name"]: row for row in rows}
    good = by_name[ALONE]["over_prefill"] <= OVER_PREFILL
    good &= all(by_name[name]["over_llmlingua"] <= OVER_THEIRS for name in (ALONE, *LAYERS))
    print(
        f"targets (stand-alone over prefill {OVER_PREFILL:g}, ours over llmlingua .33): {'met' if good else 'MISSED'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
