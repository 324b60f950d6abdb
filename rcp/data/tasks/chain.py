"""Statements that define variables from one another, shuffled, with distractors: a task to train a tiny model on.

     v7 = v2 ; v2 = 3 ; v5 = v9 ; v9 = 8 ; v7 ? 3

With `trace` the answer spells out the way to the value, one look-up a token, which a tiny model learns far sooner:

     v7 = v2 ; v2 = 3 ; v5 = v9 ; v9 = 8 ; ? v7 v2 3

The question needs as many statements as the chain of the asked variable is long; every other statement is a distractor.
The vocabulary is closed, every symbol is one token and every statement has the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcp.data.tasks.base import LazyExamples, Split, check_split, example_rng
from rcp.data.tokenizer import SymbolTokenizer
from rcp.types import Example, UserError


@dataclass(frozen=True)
class Chain:
    """The task. Fields are the keys of `config.task`.

    Attributes:
      segments: least and most statements of a context in training.
      test_segments: the same in validation and test (None: as in training).
      needed: least and most statements that a question needs, drawn evenly.
      variables: how many variable symbols there are; at least as many as the longest context has statements.
      modulus: values are 0 .. modulus - 1.
      operations: False: " v3 = v1 ;" and " v1 = 4 ;" (4 tokens). True: " v3 = v1 + 2 ;" and " v1 = 0 + 4 ;" (6 tokens),
        sums modulo `modulus`.
      shuffled: False leaves every definition before its uses, with distractors in between.
      branch: the chance that a distractor copies an earlier variable (of the needed chain too) rather than a number.
      trace: the question is " ? v7" and the answer every source in turn down to the value, instead of " v7 ?" and the
        value.
      seed: of every draw; example i of a split depends on (seed, split, i) alone.
      train_size, eval_size: lengths of the splits where no count is asked for.
    """

    segments: tuple[int, int] = (2, 6)
    test_segments: tuple[int, int] | None = (24, 24)
    needed: tuple[int, int] = (1, 3)
    variables: int = 32
    modulus: int = 10
    operations: bool = False
    shuffled: bool = True
    branch: float = 0.5
    trace: bool = False
    seed: int = 0
    train_size: int = 100_000
    eval_size: int = 1_000

    def __post_init__(self) -> None:
        for key in ("segments", "test_segments", "needed"):
            pair = getattr(self, key)
            if pair is not None and (len(pair) != 2 or not 1 <= pair[0] <= pair[1]):
                raise UserError(f"config.task.{key} = {pair}: expected (least, most) with 1 <= least <= most")
        longest = max(self.segments[1], (self.test_segments or self.segments)[1])
        if self.variables < longest:
            raise UserError(f"config.task.variables = {self.variables}: {longest} statements need as many variables")
        if self.needed[1] > self.segments[1]:
            raise UserError(
                f"config.task.needed = {self.needed}: more than the {self.segments[1]} statements of a context "
                "(config.task.segments)"
            )
        if self.needed[0] > min(self.segments[0], (self.test_segments or self.segments)[0]):
            raise UserError(
                f"config.task.needed = {self.needed}: at least {self.needed[0]} statements, more than the shortest "
                "context has (config.task.segments, config.task.test_segments)"
            )
        if not 2 <= self.modulus <= 10:
            raise UserError(f"config.task.modulus = {self.modulus}: expected 2 to 10")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"needs {n}" for n in range(self.needed[0], self.needed[1] + 1))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every symbol, one token each."""
        digits = tuple(str(n) for n in range(self.modulus))
        return ("=", ";", "?", "+", *digits, *(f"v{n}" for n in range(self.variables)))

    @property
    def chance(self) -> float:
        """Exact match of a reader that guesses the value (with `trace`: and has the way to it right)."""
        return 1 / self.modulus

    def ask(self, question: str) -> tuple[str, str]:
        """The question as it is: a closed vocabulary has no words to dress it in."""
        return "", question

    def segment(self, paragraph: str) -> str:
        return paragraph

    def tokenizer(self) -> SymbolTokenizer:
        return SymbolTokenizer(self.vocabulary)

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        check_split(split)
        size = count if count is not None else self.train_size if split == "train" else self.eval_size
        return LazyExamples(size, lambda index: self.example(split, index))

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation begins with the symbols of the answer."""
        answer = example.answer.split()
        return prediction.split()[: len(answer)] == answer

    def example(self, split: Split, index: int) -> Example:
        """Example `index` of a split; `support` names the statements of the asked variable's chain."""
        rng = example_rng(self.seed, split, index)
        least, most = self.segments if split == "train" or self.test_segments is None else self.test_segments
        total = int(rng.integers(least, most + 1))
        depth = int(rng.integers(self.needed[0], min(self.needed[1], total) + 1)) if total > self.needed[0] else total
        names = [f"v{n}" for n in rng.permutation(self.variables)[:total]]
        value: dict[str, int] = {}
        statements: list[str] = []
        sources: list[int | None] = []
        for number, name in enumerate(names):
            start = number == 0 or (number >= depth and rng.random() >= self.branch)
            refers = None if start else number - 1 if number < depth else int(rng.integers(number))
            source = "0" if refers is None else names[refers]
            sources.append(refers)
            add = int(rng.integers(self.modulus)) if start or self.operations else 0
            value[name] = ((0 if start else value[source]) + add) % self.modulus
            if self.operations:
                statements.append(f" {name} = {source} + {add} ;")
            else:
                statements.append(f" {name} = {add if start else source} ;")
        order = rng.permutation(total) if self.shuffled else _definitions_first(rng, sources)
        place = {int(old): new for new, old in enumerate(order)}
        asked = names[depth - 1]
        way = "".join(f" {name}" for name in reversed(names[: depth - 1])) if self.trace else ""
        return Example(
            instruction="",
            context=tuple(statements[old] for old in order),
            question=f" ? {asked}" if self.trace else f" {asked} ?",
            answer=f"{way} {value[asked]}",
            support=tuple(place[number] for number in range(depth)),
            group=f"needs {depth}",
            uid=f"chain/{split}/{index}",
        )


def _definitions_first(rng: np.random.Generator, sources: list[int | None]) -> list[int]:
    """A random order of the statements in which each comes after the one it refers to."""
    order: list[int] = []
    while len(order) < len(sources):
        ready = [n for n, source in enumerate(sources) if n not in order and (source is None or source in order)]
        order.append(ready[int(rng.integers(len(ready)))])
    return order
