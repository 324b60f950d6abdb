"""Common words extraction: a long list of words, some of which occur far more often than the others.

    A list of words: river, lantern, maple, river, ...
    Question: Which word occurs most often in the list?
    Answer: The word that occurs most often is river.

As in RULER (arXiv 2404.06654; what departs is said in `generated`), except that the list is not numbered: numbers with
gaps would tell the reader that words were dropped. What is needed is every occurrence of a common word. The words asked
for in a split are asked for in no other one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from rcp.data.tasks.base import Split, example_rng
from rcp.data.tasks.generated import Count, Generated, expect, named, of_split, pieces, take
from rcp.data.tasks.haystack_words import NOUNS
from rcp.types import Example


@dataclass(frozen=True)
class CommonWords(Generated):
    """The task. Fields are the keys of `config.task`.

    Attributes:
      common: how many words are common, and asked for.
      times: how often each of them occurs.
      other_times: how often the others occur; a few once less or more, and all more often where there are not enough
        words for the length, but always less often than the common ones.
    """

    common: int = 1
    times: int = 30
    other_times: int = 3

    INSTRUCTION: ClassVar[str] = "A list of words:"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(1 <= self.common <= len(NOUNS) // 3, "common", self.common, f"1 to {len(NOUNS) // 3}")
        expect(self.other_times >= 1, "other_times", self.other_times, "1 or more")
        expected = f"more than config.task.other_times = {self.other_times} + 1"
        expect(self.times > self.other_times + 1, "times", self.times, expected)

    @property
    def groups(self) -> tuple[str, ...]:
        return ("common words",)

    def segment(self, paragraph: str) -> str:
        """With a comma, as every word of a list."""
        return f" {paragraph.strip().rstrip(',')},"

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        rng = example_rng(self.seed, split, index)
        common = [str(word) for word in rng.permutation(of_split(NOUNS, split))[: self.common]]
        others = [str(word) for word in rng.permutation([word for word in NOUNS if word not in common])]
        question = self._question()
        needed = [self.segment(word) for word in common for _ in range(self.times)]
        room = self.room(count, self.INSTRUCTION, question, named(common), *needed)
        mean = sum(count(self.segment(word)) for word in others) / len(others)
        different = max(1, min(len(others), math.ceil(room / mean / self.other_times)))
        filler = take((self.segment(word) for word in itertools.cycle(others[:different])), room, count)
        often = max(Counter(filler).values(), default=0)
        expected = f"more than {often}, the times that other words occur in {self.tokens} tokens"
        expect(often < self.times, "times", self.times, expected)
        words = [*needed, *filler]
        context = tuple(words[n] for n in rng.permutation(len(words)).tolist())
        wanted = {self.segment(word) for word in common}
        found = sorted(common, key=lambda word: context.index(self.segment(word)))
        return Example(
            instruction=self.INSTRUCTION,
            context=context,
            question=question,
            answer=named(found),
            support=tuple(place for place, word in enumerate(context) if word in wanted),
            group=self.groups[0],
            uid=f"common_words/{split}/{index}",
        )

    def _question(self) -> str:
        if self.common == 1:
            which, has = "Which word occurs most often in the list?", "The word that occurs most often is"
        else:
            which = f"Which {self.common} words occur most often in the list?"
            has = f"The {self.common} words that occur most often are"
        return f"{self.ask(which)[1]} {has}"
