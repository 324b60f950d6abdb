"""Is the budget met in the text that is sent? Prompts pruned as text, and the result counted by the reader's tokenizer.

    python -m experiments.budget_exact [--prompts=200] [--rates=0.75,0.5,0.25,0.1] [--output=X.json]

GSM8K training problems with eight candidate shots (facts where there are no files), SmolLM2's tokenizer, every
granularity, and three scorers that need no reader: random, BM25, and an untrained stand-alone scorer. No model is
loaded. "unmended" is what re-tokenising alone makes of it: the text of as many of the scorer's tokens as were asked
for. Ends with status 1 where a prompt is not of the length asked for. About 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.grid import numbers
from experiments.prompts import long_prompts
from rcp.data.tasks.word_problems import Gsm8k
from rcp.infer.prompt import PromptPruner, PrunedPrompt
from rcp.nn.pruner import Scores
from rcp.nn.scorer import Scorer, ScorerConfig
from rcp.policies import Bm25, Random
from rcp.pretrained import gguf
from rcp.pretrained.load import locate
from rcp.types import Batch, Tokenizer, UserError

GRANULARITIES = ("token", "segment", "two_stage")
COLUMNS = ("scorer", "granularity", "keep rate", "equal", "below", "above", "largest gap")
COLUMNS += ("unmended: equal", "unmended: above", "by up to")
ROWS = 25  # prompts pruned at once

Score = Callable[[Batch, jax.Array], Scores]


def scorers(tokenizer: Tokenizer) -> dict[str, Score]:
    """What decides, by its name in the table."""
    random, bm25, key = Random(), Bm25(tokenizer.decode), jax.random.key(0)
    graph, params = nnx.split(Scorer(ScorerConfig("standalone", tokenizer.vocab_size, 16, 1, 2), nnx.Rngs(0)))
    untrained = jax.jit(lambda params, batch: nnx.merge(graph, params)(batch))
    return {
        "random": lambda batch, budget: random.scores(batch, key=key),
        "bm25": lambda batch, budget: bm25.scores(batch, key=key),
        "untrained": lambda batch, budget: untrained(params, batch),
    }


def summary(pruned: list[PrunedPrompt], tokenizer: Tokenizer) -> dict[str, Any]:
    """Shares of prompts, and gaps in tokens; the tokens of the text are counted here once more."""
    asked = np.array([min(found.asked, found.tokens) for found in pruned])
    got = np.array([len(tokenizer.encode(found.text)) for found in pruned])
    unmended = np.array([found.unmended for found in pruned])
    return {
        "prompts": len(pruned),
        "equal": float(np.mean(got == asked)),
        "below": float(np.mean(got < asked)),
        "above": float(np.mean(got > asked)),
        "largest_gap": int(np.max(np.abs(got - asked))),
        "unmended_equal": float(np.mean(unmended == asked)),
        "unmended_above": float(np.mean(unmended > asked)),
        "unmended_largest_excess": int(max(np.max(unmended - asked), 0)),
    }


def measure(prompts: int, rates: Sequence[float], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """One row for each scorer, granularity and keep rate."""
    try:
        examples = list(Gsm8k(shots=8).examples("train", prompts))
    except UserError:
        examples = long_prompts(tokenizer, prompts, 1000)
    contexts, questions = ["".join(e.context) for e in examples], [e.question for e in examples]
    rows = []
    for name, score in scorers(tokenizer).items():
        for granularity in GRANULARITIES:
            pruner = PromptPruner(score, tokenizer, granularity, segment=lambda text: f"{text.strip()}\n\n")
            for rate in rates:
                pruned = []
                for start in range(0, prompts, ROWS):
                    part = slice(start, start + ROWS)
                    pruned += pruner(contexts[part], questions[part], keep_rate=rate)
                rows.append({"scorer": name, "granularity": granularity, "keep_rate": rate})
                rows[-1] |= summary(pruned, tokenizer)
                print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['scorer']} | {row['granularity']} | {row['keep_rate']:g} | {row['equal']:.1%} | {row['below']:.1%} "
        f"| {row['above']:.1%} | {row['largest_gap']} | {row['unmended_equal']:.1%} | {row['unmended_above']:.1%} "
        f"| {row['unmended_largest_excess']} |"
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table; exit code 1 where a prompt has not the tokens asked for, 2 where nothing can be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rates", type=numbers, default="0.75,0.5,0.25,0.1", help="keep rates, separated by commas")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args(argv)
    try:
        tokenizer = gguf.read_tokenizer(gguf.GGUF(locate("smollm2-135m-instruct")))
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        rows = measure(arguments.prompts, arguments.rates, tokenizer)
    except UserError as error:
        print(f"budget_exact: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    total = sum(row["prompts"] for row in rows)
    missed = sum(round((1 - row["equal"]) * row["prompts"]) for row in rows)
    print(f"{total - missed} of {total} pruned prompts have exactly the tokens asked for")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
