"""What every task offers, and the lazy sequence that most of them return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np

from rcp.types import Example, Tokenizer, UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@runtime_checkable
class Task(Protocol):
    """A family of problems. Implementations are frozen dataclasses whose fields are the keys of `config.task`."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Every value that `Example.group` takes, in the order in which evaluation reports them."""
        ...

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        """The first `count` examples of a split (None: all of them); the same in every run with the same fields."""
        ...

    def check(self, prediction: str, example: Example) -> bool:
        """Whether a decoded continuation answers the example."""
        ...

    def ask(self, question: str) -> tuple[str, str]:
        """Instruction and question of a prompt as the task writes them, for a question that is not in its data."""
        ...

    def segment(self, paragraph: str) -> str:
        """A paragraph that is not in the task's data, as the task writes its segments: with its separator.

        The pruner then sees the tokens that it was trained on (" Bob" and "Bob" are different ones).
        """
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The task's own closed-vocabulary tokenizer, or None where a pretrained one is to be used."""
        ...


@dataclass(frozen=True)
class LazyExamples(Sequence[Example]):
    """`size` examples, each made by `make(i)` when asked for."""

    size: int
    make: Callable[[int], Example]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return self.make(int(index) % self.size)


def example_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator that alone decides example `index` of `split`: random access, the same on every platform."""
    return np.random.default_rng([seed, SPLITS.index(split), index])  # pyright: ignore[reportArgumentType]


def check_split(split: str) -> None:
    """Raises UserError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise UserError(f"split {split!r}: expected one of {', '.join(SPLITS)}")


def examples_of(task: Task, tokenizer: Tokenizer, split: Split, count: int | None) -> Sequence[Example]:
    """The first `count` examples of a split, as a reader with this tokenizer gets them.

    A task whose prompts have a length in the reader's tokens has a method `examples_in` (`rcp.data.tasks.generated`).
    """
    if (sized := getattr(task, "examples_in", None)) is not None:
        return sized(tokenizer, split, count)
    return task.examples(split, count)


def answer_key(task: Task) -> Callable[[str], str | None]:
    """From a decoded continuation to the answer in it, in a form that equal answers share: what samples vote with.

    The task's own method `answer_key` where it has one, else the text without outer white space. None is no vote.
    """
    return getattr(task, "answer_key", str.strip)


def answer_end(task: Task) -> str:
    """The text that ends an answer in the task's worked examples, where decoding may stop: the task's `answer_end`."""
    return getattr(task, "answer_end", "")


def same_text(prediction: str, gold: str) -> bool:
    """Equal up to outer white space, white space before line ends, and whatever lines the prediction has more."""
    lines, said = ([line.rstrip() for line in text.strip().splitlines()] for text in (gold, prediction))
    return bool(lines) and said[: len(lines)] == lines
