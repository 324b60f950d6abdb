"""Question answering with distractors: short documents about people, one or two of which the question needs.

    Documents:
    This is about Adam Harlow. Adam Harlow was born in Oslo. ... The colleague of Adam Harlow is Clara Finch.
    ...
    Question: In which city was Adam Harlow born?
    Answer: Adam Harlow was born in Oslo.

What RULER (arXiv 2404.06654; what departs is said in `generated`) takes from SQuAD and HotpotQA is made up here, so
that no reader knows it by heart. With two hops the question names somebody only by a colleague ("the colleague of Adam
Harlow"), whose document tells the name. First names and the values told in a split occur in no other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from rcp.data.tasks import lexicon
from rcp.data.tasks.base import Split, example_rng
from rcp.data.tasks.facts import GROUPS
from rcp.data.tasks.generated import Count, Generated, expect, of_split, pieces, take
from rcp.data.tasks.haystack_words import INSTRUMENTS, SURNAMES
from rcp.types import Example


class Property(NamedTuple):
    """What a document tells of a person `{who}`, and the question; what is told ends with one of the values.

    The answer begins as the document tells it: SmolLM2-135M hardly found what a document said in other words.
    """

    told: str
    question: str
    values: tuple[str, ...]


class Person(NamedTuple):
    first: str
    last: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


PROPERTIES = (
    Property(
        "{who} was born in",
        "In which city was {who} born?",
        tuple(lexicon.CITIES),
    ),
    Property(
        "{who} plays the",
        "Which instrument does {who} play?",
        tuple(INSTRUMENTS),
    ),
    Property(
        "{who} loves to eat",
        "What is the favourite food of {who}?",
        tuple(lexicon.FOODS),
    ),
    Property(
        "{who} works as",
        "What is the job of {who}?",
        tuple(f"{'an' if trade[0] in 'aeiou' else 'a'} {trade}" for trade in lexicon.TRADES),
    ),
)


@dataclass(frozen=True)
class Documents(Generated):
    """The task. Fields are the keys of `config.task`.

    Attributes:
      hops: the kinds of question, drawn evenly: (1,), (2,) or (1, 2).
    """

    hops: tuple[int, ...] = (1,)

    INSTRUCTION: ClassVar[str] = "Documents:"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(bool(self.hops) and set(self.hops) <= {1, 2}, "hops", self.hops, "some of 1 and 2")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(GROUPS[hops] for hops in sorted(set(self.hops)))

    def segment(self, paragraph: str) -> str:
        """A line of its own, as every document."""
        return f"\n{' '.join(paragraph.split())}"

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        rng = example_rng(self.seed, split, index)
        hops = int(self.hops[int(rng.integers(len(self.hops)))])
        people = self._people(rng, split)
        asked = PROPERTIES[int(rng.integers(len(PROPERTIES)))]
        pools = {told: [str(v) for v in rng.permutation(of_split(told.values, split))] for told in PROPERTIES}
        answer = f" {pools[asked].pop()}."  # so that no other document has it
        documents = self._documents(rng, people, pools, asked, hops - 1, answer[1:-1])
        needed = [next(documents) for _ in range(hops)]
        who = people[0].name if hops == 1 else f"the colleague of {people[0].name}"
        stem = asked.told.format(who=who)
        question = f"{self.ask(asked.question.format(who=who))[1]} {stem[0].upper()}{stem[1:]}"
        room = self.room(count, self.INSTRUCTION, question, answer, *needed)
        texts = [*needed, *take(documents, room, count)]
        order = rng.permutation(len(texts)).tolist()
        return Example(
            instruction=self.INSTRUCTION,
            context=tuple(texts[old] for old in order),
            question=question,
            answer=answer,
            support=tuple(order.index(number) for number in range(hops)),
            group=GROUPS[hops],
            uid=f"documents/{split}/{index}",
        )

    @staticmethod
    def _people(rng: np.random.Generator, split: Split) -> list[Person]:
        """All different; names come again as late as can be."""
        firsts = [str(name) for name in rng.permutation(of_split(lexicon.NAMES, split))]
        lasts = [str(name) for name in rng.permutation(SURNAMES)]
        rounds = range(len(lasts))
        return [Person(first, lasts[(n + r) % len(lasts)]) for r in rounds for n, first in enumerate(firsts)]

    def _documents(
        self,
        rng: np.random.Generator,
        people: Sequence[Person],
        pools: dict[Property, list[str]],
        asked: Property,
        place: int,
        answer: str,
    ) -> Iterator[str]:
        """A document for each of the people; the colleague is the next. The one at `place` has the answer."""
        for number, (person, colleague) in enumerate(pairwise(people)):
            told = {prop: pool[int(rng.integers(len(pool)))] for prop, pool in pools.items()}
            if number == place:
                told[asked] = answer
            lines = [f"{prop.told.format(who=person.name)} {value}." for prop, value in told.items()]
            lines.append(f"The colleague of {person.name} is {colleague.name}.")
            body = [lines[n] for n in rng.permutation(len(lines)).tolist()]
            yield self.segment(f"This is about {person.name}. {' '.join(body)}")
