"""Needles in a haystack: the magic numbers of some things, somewhere in a long text; and the pass key.

    Some magic numbers are hidden in this text: After lunch, the baker cut the grass. The magic number of the proud
    lantern is 48213. My aunt agreed that most arguments begin with a small mistake. ...
    Question: What is the magic number of the proud lantern?
    Answer: The magic number of the proud lantern is 48213.

RULER's single, multi-key, multi-value and multi-query tasks (arXiv 2404.06654; what departs is said in `generated`) and
passkey retrieval (Mohtashami and Jaggi, "Landmark Attention", arXiv 2305.16300). Things and numbers of a split occur in
no other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from rcp.data.tasks.base import Split, example_rng
from rcp.data.tasks.generated import Count, expect, insert, named, numbers, of_split, pieces, take
from rcp.data.tasks.haystack import THIRDS, Haystack, places, third
from rcp.data.tasks.haystack_words import ADJECTIVES, NOUNS
from rcp.types import Example

MOST = 64
"""The most keys, values and queries."""


@dataclass(frozen=True)
class Hidden(Haystack):
    """What needles and the pass key share. Fields are the keys of `config.task`.

    Attributes:
      digits: of a number.
      depth: where what is asked for stands: 0 at the beginning of the text, 1 at its end; None: anywhere.
    """

    digits: int = 5
    depth: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(2 <= self.digits <= 9, "digits", self.digits, "2 to 9")
        expect(self.depth is None or 0 <= self.depth <= 1, "depth", self.depth, "0 to 1, or none")

    @property
    def groups(self) -> tuple[str, ...]:
        """The third of the text in which the first needed sentence stands."""
        return THIRDS


@dataclass(frozen=True)
class Needle(Hidden):
    """The task. Fields are the keys of `config.task`.

    Attributes:
      keys: things whose numbers are told, those asked for among them; 0: the whole text tells numbers, without filler.
      values: numbers that each asked thing has. All of them are to be named.
      queries: things that are asked for.
    """

    keys: int = 1
    values: int = 1
    queries: int = 1

    INSTRUCTION: ClassVar[str] = "Some magic numbers are hidden in this text:"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("values", "queries"):
            expect(1 <= getattr(self, key) <= MOST, key, getattr(self, key), f"1 to {MOST}")
        expected = f"0, or config.task.queries = {self.queries} to {MOST}"
        expect(not self.keys or self.queries <= self.keys <= MOST, "keys", self.keys, expected)

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        rng = example_rng(self.seed, split, index)
        things = self._things(rng, split)
        told = iter(numbers(rng, split, self.digits, self._most))
        asked = things[: self.queries]
        values = [[next(told) for _ in range(self.values)] for _ in asked]
        needles = [self._sentence(thing, value) for thing, own in zip(asked, values) for value in own]
        rivals = (self._sentence(thing, value) for thing, value in zip(things[self.queries :], told))
        others = [next(rivals) for _ in range(self.keys - self.queries)] if self.keys else []
        every = [value for own in values for value in own]
        question, answer = self.asked(asked, every)
        room = self.room(count, self.INSTRUCTION, question, answer, *needles, *others)
        source = self.filler(rng, split, ["magic number", *every]) if self.keys else rivals
        filler = take(source, room, count)
        filler = insert(places(rng, len(filler), len(others)), others, filler)
        found = places(rng, len(filler), len(needles), self.depth)
        # The numbers of a thing stand in the text in the order in which the answer names them.
        groups = [sorted(found[at : at + self.values]) for at in range(0, len(found), self.values)]
        support = tuple(place for group in groups for place in group)
        context = insert(support, needles, filler)
        return Example(
            instruction=self.INSTRUCTION,
            context=context,
            question=question,
            answer=answer,
            support=support,
            group=third(min(support), len(context)),
            uid=f"needle/{split}/{index}",
        )

    @property
    def _most(self) -> int:
        """Numbers and things that an example may need; a text of needles alone has more than six tokens for each."""
        return self.queries * self.values + (self.keys - self.queries if self.keys else self.tokens // 6)

    def _things(self, rng: np.random.Generator, split: Split) -> list[str]:
        nouns = of_split(NOUNS, split)
        drawn = rng.permutation(len(ADJECTIVES) * len(nouns))[: self._most].tolist()
        return [f"the {ADJECTIVES[n // len(nouns)]} {nouns[n % len(nouns)]}" for n in drawn]

    def _sentence(self, thing: str, value: str) -> str:
        if self.values == 1:
            return f" The magic number of {thing} is {value}."
        return f" One of the magic numbers of {thing} is {value}."

    def asked(self, things: list[str], values: list[str]) -> tuple[str, str]:
        """Question and answer about some things, whose numbers stand in the text in the order of `values`."""
        told = named(things)[1:-1]
        number, verb = ("number", "is") if len(values) == 1 else ("numbers", "are")
        question = f"What {verb} the magic {number} of {told}?"
        return f"{self.ask(question)[1]} The magic {number} of {told} {verb}", named(values)


@dataclass(frozen=True)
class Passkey(Hidden):
    """The task. Fields are the keys of `config.task`."""

    haystack: Literal["sentences", "repeated"] = "repeated"

    INSTRUCTION: ClassVar[str] = "A pass key is hidden in this text. Remember it."

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        rng = example_rng(self.seed, split, index)
        (key,) = numbers(rng, split, self.digits, 1)
        needle = f" The pass key is {key}. Remember it: {key} is the pass key."
        question, answer = f"{self.ask('What is the pass key?')[1]} The pass key is", f" {key}."
        room = self.room(count, self.INSTRUCTION, question, answer, needle)
        filler = take(self.filler(rng, split, ["pass key", key]), room, count)
        support = tuple(places(rng, len(filler), 1, self.depth))
        context = insert(support, [needle], filler)
        return Example(
            instruction=self.INSTRUCTION,
            context=context,
            question=question,
            answer=answer,
            support=support,
            group=third(support[0], len(context)),
            uid=f"passkey/{split}/{index}",
        )
