"""Which reasoning-gym families a model can do from worked examples: exact match with 0, 4, 8 and 16 shots of a family.

    python -m experiments.reasoning_families [--families=chain_sum,gcd] [--questions=48] [--output=table.md]

One row a family, its problems made small by `OPTIONS` and its wording as published. The questions are of the training
split of another seed than that of any config: families may be chosen by this table, and results reported on the others.
A question's 4 shots are the last of its 8, and those of its 16. Exact match is teacher-forced: every token of the
gold answer and the blank line behind it is the likeliest one, as in greedy decoding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.grid import integers, words
from rcp.config_file import from_dict
from rcp.evaluate.results import real_rows
from rcp.evaluate.subject import Subject, of_reader
from rcp.nn.lengths import of_lengths
from rcp.nn.pruner import compact
from rcp.pretrained import Pretrained, load
from rcp.train.parallel import use_compile_cache
from rcp.types import Batch, Role, UserError

SHOTS = (0, 4, 8, 16)
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536)
SEED = 1
OPTIONS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "decimal_chain_sum": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "min_decimal_places": 1,
        "max_decimal_places": 1,
    },
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "max_digits": 2,
        "operators": ("+", "-"),
        "allow_parentheses": False,
        "allow_negation": False,
    },
    "simple_equations": {
        "max_terms": 2,
        "max_value": 20,
        "operators": ("+", "-"),
        "operators_weights": (0.5, 0.5),
    },
    "number_sequence": {"max_terms": 6, "min_value": 0, "max_value": 9, "max_complexity": 1},
    "products": {"max_digits": 1},
    "gcd": {"max_value": 20},
    "lcm": {"max_value": 12},
    "complex_arithmetic": {
        "min_real": 1,
        "max_real": 9,
        "min_imag": 1,
        "max_imag": 9,
        "operations": ("+", "-"),
        "operations_weights": (0.5, 0.5),
    },
    "fraction_simplification": {"max_value": 9, "max_factor": 5, "styles": ("plain",)},
    "count_primes": {"max_n": 50},
    "coin_flip": {"min_trials": 2, "max_trials": 5},
    "calendar_arithmetic": {"tasks": ("is_leap_year",)},
    "spell_backward": {"max_word_len": 3},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "sentence_reordering": {"max_words_in_sentence": 4},
    "number_filtering": {"max_numbers": 3, "max_decimals": 0},
    "family_relationships": {"max_family_size": 4},
}
"""The families that are tried where none is named, with what makes their problems small."""


@dataclass(frozen=True)
class Survey:
    """One family. `exact` and `nll` (nats an answer token): means at each number of shots; `tokens`: of one shot."""

    family: str
    tokens: float
    exact: tuple[float, ...]
    nll: tuple[float, ...]


def reader_of(subject: Subject, lengths: Sequence[int]) -> Callable[[Batch, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(exact, NLL) of prompts of which a mask is kept; compiled once, for all families, at a few static lengths."""
    read = of_lengths(subject.read, lengths)

    @jax.jit
    def compiled(weights: Any, batch: Batch, keep: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        reading = read(weights, compact(batch, keep, lengths[-1]), number)
        return reading.exact, reading.nll

    def kept(batch: Batch, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = np.max(np.sum(keep & (batch.role != Role.PAD), axis=1))
        exact, nll = compiled(subject.weights, batch, keep, np.int32(np.searchsorted(lengths, longest)))
        return np.asarray(exact), np.asarray(nll)

    return kept


def survey(
    family: str, batches: Sequence[Batch], read: Callable[..., tuple[np.ndarray, np.ndarray]], shots: Sequence[int]
) -> Survey:
    """Reads the questions after the last `count` shots of their context, for every count of `shots`."""
    most, exact, nll = max(shots), [], []
    for count in shots:
        found = [read(batch, (batch.role != Role.CONTEXT) | (batch.segment >= most - count)) for batch in batches]
        exact.append(float(np.mean(real_rows(batches, [pair[0] for pair in found]))))
        nll.append(float(np.mean(real_rows(batches, [pair[1] for pair in found]))))
    tokens = np.mean(real_rows(batches, [np.sum(batch.role == Role.CONTEXT, axis=1) for batch in batches]))
    return Survey(family, float(tokens) / most, tuple(exact), tuple(nll))


def subject_of(family: str, options: argparse.Namespace, model: Pretrained) -> Subject:
    """The reader with questions of one family and as many shots as the most that are asked for."""
    task = {"name": "reasoning_gym", "families": (family,), "shots": max(options.shots), "seed": SEED}
    task |= {"params": {family: OPTIONS.get(family, {})}}
    values = {
        "task": task,
        "data": {"lengths": options.lengths[-1:], "max_segments": max(options.shots), "max_answer": 32},
        "model": {"name": options.model, "dtype": options.dtype},
        "eval": {"split": "train", "examples": options.questions, "batch_size": 8},
    }
    return of_reader(from_dict(values), model)


def table(rows: Sequence[Survey], shots: Sequence[int], questions: int) -> str:
    """The Markdown table, best at the most shots first."""
    header = [f"exact match, n = {questions}", "tokens a shot", *(f"{count} shots" for count in shots)]
    header += [f"answer NLL, {shots[0]} / {shots[-1]} shots"]
    lines = [header]
    for row in sorted(rows, key=lambda row: -row.exact[-1]):
        numbers = [f"{value:.2f}" for value in row.exact]
        lines.append([row.family, f"{row.tokens:.0f}", *numbers, f"{row.nll[0]:.2f} / {row.nll[-1]:.2f}"])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]]) + "\n"


def run(options: argparse.Namespace) -> list[Survey]:
    """The families asked for; one that cannot be measured is left out, with a word on stderr."""
    model, read, rows = load(options.model, dtype=options.dtype), None, []
    for family in options.families:
        subject = subject_of(family, options, model)
        read = read or reader_of(subject, options.lengths)
        try:
            batches, _ = subject.examples()
        except UserError as error:
            print(f"{family}: left out, {error}", file=sys.stderr)
            continue
        rows.append(survey(family, batches, read, options.shots))
        numbers = ", ".join(f"{value:.2f} at {count}" for count, value in zip(options.shots, rows[-1].exact))
        print(f"{family}: {numbers} shots", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and writes it where asked; exit code 2 where no family could be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--families", type=words, default=tuple(OPTIONS), help="(default: those of OPTIONS)")
    add("--shots", type=integers, default=SHOTS, help="numbers of worked examples, ascending (default: 0,4,8,16)")
    add(
        "--lengths",
        type=integers,
        default=LENGTHS,
        help="static lengths, ascending; a family with a longer prompt is left out",
    )
    add("--questions", type=int, default=48, help="a family (default: %(default)s)")
    add("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    add("--output", type=Path, help="write the table there too")
    options = parser.parse_args(argv)
    use_compile_cache()
    try:
        rows = run(options)
    except UserError as error:
        print(f"reasoning_families: {error}", file=sys.stderr)
        return 2
    if not rows:
        return 2
    text = table(rows, options.shots, options.questions)
    print(text, end="")
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
