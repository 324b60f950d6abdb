"""Variable tracking: chains of assignments, scattered over a long text in their order.

    Some variables are set in this text: VAR maple = 48213. After lunch, the baker cut the grass. VAR river = VAR maple.
    ...
    Question: What is the value of river?
    Answer: The value of river is 48213.

RULER's multi-hop tracing (arXiv 2404.06654; what departs is said in `generated`) asks for all variables of a value
(`asks` "variables"); the value of the last variable of a chain is what a small model can find. Variables are nouns
rather than five capitals, which are several tokens each. Those of a split, and its values, occur in no other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rcp.data.tasks.base import Split, example_rng
from rcp.data.tasks.generated import Count, expect, insert, named, numbers, of_split, pieces, take
from rcp.data.tasks.haystack import Haystack, places
from rcp.data.tasks.haystack_words import NOUNS
from rcp.types import Example


@dataclass(frozen=True)
class Tracking(Haystack):
    """The task. Fields are the keys of `config.task`.

    Attributes:
      chains: how many there are, each with a value of its own; one is asked for.
      hops: assignments of a chain from one variable to the next, drawn evenly; all chains of an example have as many.
      asks: "value": that of the chain's last variable; "variables": all that have the chain's value, in order.
      digits: of a value.
    """

    chains: int = 1
    hops: tuple[int, ...] = (1,)
    asks: Literal["value", "variables"] = "value"
    digits: int = 5

    INSTRUCTION: ClassVar[str] = "Some variables are set in this text:"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(bool(self.hops) and min(self.hops) >= 0, "hops", self.hops, "one or more numbers from 0 on")
        expect(self.asks in ("value", "variables"), "asks", self.asks, "value or variables")
        expect(2 <= self.digits <= 9, "digits", self.digits, "2 to 9")
        there = len(NOUNS) // 3 // (max(self.hops) + 1)
        expected = f"1 to {there}, for which there are variables with config.task.hops = {self.hops}"
        expect(1 <= self.chains <= there, "chains", self.chains, expected)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._group(hops) for hops in sorted(set(self.hops)))

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        rng = example_rng(self.seed, split, index)
        hops = int(self.hops[int(rng.integers(len(self.hops)))])
        names = [str(name) for name in rng.permutation(of_split(NOUNS, split))[: self.chains * (hops + 1)]]
        values = numbers(rng, split, self.digits, self.chains)
        chains = [names[n * (hops + 1) : (n + 1) * (hops + 1)] for n in range(self.chains)]
        told = [self._statements(chain, value) for chain, value in zip(chains, values)]
        question, answer = self.asked(chains[0], values[0])
        room = self.room(count, self.INSTRUCTION, question, answer, *(text for own in told for text in own))
        context = tuple(take(self.filler(rng, split, ["var ", *values]), room, count))
        support: tuple[int, ...] = ()
        for own in reversed(told):  # the asked chain last, when nothing moves it any more
            support = tuple(sorted(places(rng, len(context), len(own))))
            context = insert(support, own, context)
        return Example(
            instruction=self.INSTRUCTION,
            context=context,
            question=question,
            answer=answer,
            support=support,
            group=self._group(hops),
            uid=f"tracking/{split}/{index}",
        )

    @staticmethod
    def _group(hops: int) -> str:
        return f"{hops} hop{'s' if hops != 1 else ''}"

    @staticmethod
    def _statements(chain: list[str], value: str) -> list[str]:
        """Each variable after the one that it is set from."""
        sources = [value, *(f"VAR {name}" for name in chain)]
        return [f" VAR {name} = {source}." for name, source in zip(chain, sources)]

    def asked(self, chain: list[str], value: str) -> tuple[str, str]:
        """Question and answer about a chain of variables, whose last one has the value."""
        if self.asks == "value":
            last = chain[-1]
            return f"{self.ask(f'What is the value of {last}?')[1]} The value of {last} is", f" {value}."
        asked = f"Which variables have the value {value}?"
        return f"{self.ask(asked)[1]} The variables with the value {value} are", named(chain)
