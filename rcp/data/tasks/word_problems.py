"""Arithmetic word problems with candidate few-shot examples as context (GSM8K, SVAMP, AddSub, MRD3).

    Q: There are 15 trees ...
    A: Let's think step by step. We start with ... The answer is 6.

The format, and how the final answer is read off, are those of CoT-Influx (arXiv 2312.08901).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from rcp.data import sources
from rcp.data.answers import answer_key, check, final_answer
from rcp.data.sources import Problem
from rcp.data.tasks.base import LazyExamples, Split, check_split, example_rng
from rcp.data.tasks.handwritten import HANDWRITTEN
from rcp.types import Example, Tokenizer, UserError

THINK = "Let's think step by step."
POOLS = ("gsm8k", "mrd3", "gsm8k+mrd3", "handwritten")
END = "\n\n"
"""What follows a worked solution, in shots and in gold answers."""
EVALUATION = ("svamp", "addsub", "multiarith", "singleeq")
"""Data sets without a training file; their gold answers are equations."""
ANSWERS = ("sentences", "equations")
"""How a gold answer is written."""


def shot(problem: Problem) -> str:
    """A worked example as a context segment."""
    return f"Q: {problem.question}\nA: {THINK}{gold(problem)}"


def gold(problem: Problem) -> str:
    """The worked solution, to its end as shots have it: a blank line is another token than a line's end."""
    return _ended(problem.solution)


def _ended(solution: str) -> str:
    return f" {solution}{END}"


__all__ = [
    "AddSub",
    "Gsm8k",
    "Mrd3",
    "MultiArith",
    "SingleEq",
    "Svamp",
    "WordProblems",
    "check",
    "final_answer",
    "shot",
]


@dataclass(frozen=True)
class WordProblems:
    """The task. Fields are the keys of `config.task`.

    Rows of the training file are shuffled by `seed` and divided into validation problems, the pool that shots are drawn
    from, and training problems, which never overlap; test problems come from the published test file (for MRD3, which
    has none, from a further part of its rows). SVAMP and AddSub are for evaluation alone; their worked solutions
    are the published equations ("70 - 27 = 43. The answer is 43."), their shots come from GSM8K.

    Attributes:
      dataset: gsm8k, svamp, addsub, multiarith, singleeq or mrd3.
      pool: the data set that shots are drawn from: gsm8k, mrd3, or gsm8k+mrd3 for both together ("": the task's own,
        gsm8k for SVAMP and AddSub). "handwritten" draws none: the shots are the first of our eight, in their order.
      shots: candidate shots in each context.
      append: so many of our hand-written shots after the candidates, right before the question, as in CoT-Influx. All
        their tokens are forced: every method keeps them, and budgets count them.
      candidates: "random" draws shots from the pool, and "nested" too, but so that what is drawn of fewer shots is also
        among more; "bm25" takes those most like the question. They always stand in random order, and none has the
        question's own text.
      pool_size, validation_size: rows of each data set that are set aside.
      max_difficulty: leaves out harder training problems and shots of MRD3 (0: none).
      order: "difficulty" puts the training problems asked for in order of MRD3's difficulty, then of its steps, for a
        curriculum (`config.data.phases`); "" leaves them shuffled.
      max_words: leaves out training problems and shots with more words in question and solution (0: none). Static
        shapes cost what the longest example costs, so a few long ones make every step dear.
      equations: the share of GSM8K's training and validation problems whose gold answer is the solution's equations
        alone, as SVAMP and AddSub publish theirs; evenly spread. Shots and test problems stay as published. How the
        gold answer is written, in `ANSWERS`, is a problem's group.
      instruction: text before the shots.
      source: "files" reads the raw files; "tfds" prepares and reads the TFDS builder of rcp.data.builders.
      seed: of the division and of every draw.
    """

    dataset: str = "gsm8k"
    pool: str = ""
    shots: int = 8
    append: int = 0
    candidates: Literal["random", "nested", "bm25"] = "random"
    pool_size: int = 2_000
    validation_size: int = 500
    max_difficulty: int = 0
    order: Literal["", "difficulty"] = ""
    max_words: int = 0
    equations: float = 0.0
    instruction: str = ""
    source: Literal["files", "tfds"] = "files"
    seed: int = 0

    answer_end: ClassVar[str] = END

    def __post_init__(self) -> None:
        if self.dataset not in sources.SOURCES:
            raise UserError(f"config.task.dataset = {self.dataset!r}: expected one of {', '.join(sources.SOURCES)}")
        if self.pool not in ("", *POOLS):
            raise UserError(f"config.task.pool = {self.pool!r}: expected one of {', '.join(POOLS)}")
        if self.shots < 1:
            raise UserError(f"config.task.shots = {self.shots}: expected at least 1")
        fixed, most = self.pool == "handwritten", len(HANDWRITTEN)
        if fixed and self.shots > most:
            raise UserError(f"config.task.shots = {self.shots}: expected at most {most} of the pool handwritten")
        if not 0 <= self.append <= (0 if fixed else most):
            expected = "0 with the pool handwritten" if fixed else f"0 to {most}"
            raise UserError(f"config.task.append = {self.append}: expected {expected}")
        marked = self.dataset == "gsm8k"
        if not 0 <= self.equations <= marked:
            expected = "a share from 0 to 1" if marked else f"0: {self.dataset} has no marked equations"
            raise UserError(f"config.task.equations = {self.equations}: expected {expected}")
        options = {
            "candidates": ("random", "nested", "bm25"),
            "source": ("files", "tfds"),
            "order": ("", "difficulty"),
        }
        for key, allowed in options.items():
            if getattr(self, key) not in allowed:
                expected = " or ".join(name or '""' for name in allowed)
                raise UserError(f"config.task.{key} = {getattr(self, key)!r}: expected {expected}")

    @property
    def groups(self) -> tuple[str, ...]:
        return ANSWERS

    def ask(self, question: str) -> tuple[str, str]:
        return self.instruction, f"Q: {question}\nA: {THINK}"

    def segment(self, paragraph: str) -> str:
        return f"{paragraph.strip()}\n\n"

    def tokenizer(self) -> Tokenizer | None:
        return None

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation's final answer is the example's."""
        return check(prediction, example.answer)

    def answer_key(self, prediction: str) -> str | None:
        """The final answer of a continuation."""
        return answer_key(prediction)

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        check_split(split)
        rows = self.problems(split)
        if count is not None and count > len(rows):
            raise UserError(f"{count} examples asked for: the {split} split of {self.dataset} has {len(rows)}")
        rows = rows[:count]
        if self.order and split == "train":
            if self.dataset != "mrd3":
                raise UserError(f"config.task.order = {self.order!r}: {self.dataset} has no difficulties, mrd3 has")
            rows = sorted(rows, key=lambda row: (row.difficulty, row.steps))
        return LazyExamples(len(rows), lambda index: self.example(split, index, rows[index]))

    def example(self, split: Split, index: int, problem: Problem) -> Example:
        """The prompt of one problem: candidate shots and appended ones as segments, then the question."""
        instruction, question = self.ask(problem.question)
        bare = bool(problem.equations) and self._bare(split, index)
        candidates = [shot(found) for found in self._candidates(split, index, problem)]
        appended = [shot(worked) for worked in HANDWRITTEN[: self.append]]
        return Example(
            instruction=instruction,
            context=(*candidates, *appended),
            question=question,
            forced=tuple((number, 0, len(text)) for number, text in enumerate(appended, len(candidates))),
            answer=_ended(problem.equations) if bare else gold(problem),
            group=ANSWERS[bare or self.dataset in EVALUATION],
            uid=problem.uid,
        )

    def _bare(self, split: Split, index: int) -> bool:
        return split != "test" and int((index + 1) * self.equations) > int(index * self.equations)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, in the order of examples."""
        if self.dataset in EVALUATION:
            if split != "test":
                raise UserError(f"{self.dataset} is for evaluation: it has no {split} split; train on gsm8k or mrd3")
            return self._read(self.dataset, "test")
        if split == "test" and self.dataset == "gsm8k":
            return self._read("gsm8k", "test")
        return self._divided(self.dataset)[split]

    @cached_property
    def shot_pool(self) -> list[Problem]:
        """The worked examples that shots are drawn from."""
        if self.pool == "handwritten":
            return list(HANDWRITTEN)
        names = self.pool or (self.dataset if self.dataset == "mrd3" else "gsm8k")
        return [row for name in names.split("+") for row in self._divided(name)["pool"]]

    def _read(self, dataset: str, split: str) -> list[Problem]:
        if self.source == "tfds":
            from rcp.data import builders

            return builders.problems(dataset, split)
        return sources.problems(dataset, split)

    def _divided(self, dataset: str) -> dict[str, list[Problem]]:
        rows = self._read(dataset, "train")
        parts = {"validation": self.validation_size, "pool": self.pool_size}
        if dataset == "mrd3":
            parts["test"] = self.validation_size
        if sum(parts.values()) >= len(rows):
            raise UserError(
                f"config.task.pool_size = {self.pool_size} and config.task.validation_size = {self.validation_size} "
                f"leave nothing of the {len(rows)} training rows of {dataset} to train on"
            )
        order = iter(np.random.default_rng(self.seed).permutation(len(rows)))
        divided = {name: [rows[int(next(order))] for _ in range(size)] for name, size in parts.items()}
        divided["train"] = [rows[int(i)] for i in order]
        for name in ("train", "pool"):
            divided[name] = [row for row in divided[name] if self._admits(row)]
        return divided

    def _admits(self, row: Problem) -> bool:
        """Whether a training problem or shot is easy and short enough."""
        words = len(row.question.split()) + len(row.solution.split())
        easy = not self.max_difficulty or row.difficulty <= self.max_difficulty
        return easy and (not self.max_words or words <= self.max_words)

    def _candidates(self, split: Split, index: int, problem: Problem) -> list[Problem]:
        rng = example_rng(self.seed, split, index)
        pool = self.shot_pool
        if self.pool == "handwritten":
            return pool[: self.shots]
        if self.candidates == "bm25":
            order = np.argsort(-self._bm25.get_scores(_words(problem.question)), kind="stable")[: self.shots + 8]
        elif self.candidates == "nested":
            order = rng.permutation(len(pool))[: self.shots + 8]
        else:
            order = rng.choice(len(pool), min(len(pool), self.shots + 8), replace=False)
        own = _words(problem.question)
        found = [pool[int(i)] for i in order if _words(pool[int(i)].question) != own][: self.shots]
        if len(found) < self.shots:
            raise UserError(f"config.task.shots = {self.shots}: the pool has only {len(found)} usable examples")
        return [found[int(i)] for i in rng.permutation(len(found))]

    @cached_property
    def _bm25(self):
        from rank_bm25 import BM25Okapi

        return BM25Okapi([_words(row.question) for row in self.shot_pool])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Gsm8k(WordProblems):
    """GSM8K (Cobbe et al., arXiv 2110.14168)."""

    dataset: str = "gsm8k"


@dataclass(frozen=True)
class Svamp(WordProblems):
    """SVAMP (Patel et al., arXiv 2103.07191)."""

    dataset: str = "svamp"


@dataclass(frozen=True)
class AddSub(WordProblems):
    """AddSub (Hosseini et al., EMNLP 2014)."""

    dataset: str = "addsub"


@dataclass(frozen=True)
class MultiArith(WordProblems):
    """MultiArith (Roy and Roth, EMNLP 2015)."""

    dataset: str = "multiarith"


@dataclass(frozen=True)
class SingleEq(WordProblems):
    """SingleEq (Koncel-Kedziorski et al., TACL 2015)."""

    dataset: str = "singleeq"


@dataclass(frozen=True)
class Mrd3(WordProblems):
    """MRD3, GSM8K-style problems evolved by GPT-4 (arXiv 2312.08901), with difficulty and steps."""

    dataset: str = "mrd3"
