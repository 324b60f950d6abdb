"""Natural sentences about people; a question needs one of them (one hop) or two linked ones (two hops).

    Facts: Bob's boss is Carl. Anna moved to Oslo. Tom's boss is Anna. Carl moved to Rome.
    Question: Which city does Tom's boss live in?
    Answer: Tom's boss lives in the city of Oslo.

Every sentence has rivals of its own kind: several people moved somewhere, several have a boss whose new home is told.
In a two-hop question the second sentence shares no word with the question, so that retrieval by words cannot find it.
Validation and test use names and values that never occur in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rcp.data.tasks import lexicon
from rcp.data.tasks.base import LazyExamples, Split, check_split, example_rng, same_text
from rcp.types import Example, Tokenizer, UserError


class Attribute(NamedTuple):
    """A property that a person has once. `{who}` is a person or "Tom's boss"; `{v}` the value."""

    statement: str
    questions: tuple[tuple[str, str], ...]  # (question, the start of the answer)
    values: list[str]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


# Worded so that SmolLM2-135M copies the value where it reads the needed sentences alone.
# No word of a statement, the person and the value apart, occurs in a question or stem of the same attribute.
ATTRIBUTES: dict[str, Attribute] = {
    "city": Attribute(
        "{who} moved to {v}.",
        (("Which city does {who} live in?", "{who} lives in the city of"),),
        lexicon.CITIES,
    ),
    "country": Attribute(
        "{who} is from {v}.",
        (("What's the native country of {who}?", "The native country of {who} equals"),),
        lexicon.COUNTRIES,
    ),
    "trade": Attribute(
        "{who} is {v}.",
        (
            ("Which job does {who} have?", "{who} has the job of"),
            ("How does {who} earn money?", "{who} earns money as"),
        ),
        [_article(word) for word in lexicon.TRADES],
    ),
    "number": Attribute(
        "{who} always bets on {v}.",
        (("What's the lucky number of {who}?", "The lucky number of {who} equals"),),
        lexicon.NUMBERS,
    ),
    "age": Attribute(
        "{who} is {v}.",
        (("What's the age of {who}?", "The age of {who} equals"),),
        lexicon.AGES,
    ),
    "food": Attribute(
        "{who} loves to eat {v}.",
        (("What is the favourite food of {who}?", "The favourite food of {who} is"),),
        lexicon.FOODS,
    ),
}
RELATION_STATEMENT = "{a}'s {relation} is {b}."
RELATION_QUESTION = ("Who is {a}'s {relation}?", "{a}'s {relation} is")
GROUPS = {1: "one-hop", 2: "two-hop"}
INSTRUCTION = "Facts:"
MAX_SEGMENTS = 64


class _World(NamedTuple):
    """Statements before they are put into words: ("relation", a, relation, b) and ("attribute", who, kind, "")."""

    facts: list[tuple[str, str, str, str]]
    kind: str  # the attribute that most sentences tell
    relation: str  # the relation that most links are of


def _make_world(rng: np.random.Generator, held_out: bool, size: int) -> _World:
    """At least `size` facts, the most tempting first; facts[0] and facts[1] are a two-hop chain.

    Nobody has an attribute twice or two people in the same relation; nobody is the end of two links.
    """
    names = [str(name) for name in rng.permutation(lexicon.pool(lexicon.NAMES, held_out))]
    kinds = [str(kind) for kind in rng.permutation(list(ATTRIBUTES))]
    relations = [str(word) for word in rng.permutation(lexicon.RELATIONS)]
    kind, relation = kinds[0], relations[0]
    people = iter(names)
    facts: list[tuple[str, str, str, str]] = []

    def link(a: str, word: str, ending: str) -> str:
        b = next(people)
        facts.append(("relation", a, word, b))
        facts.append(("attribute", b, ending, ""))
        return b

    first, second = next(people), next(people)
    end = link(first, relation, kind)
    link(second, relation, kind)  # another's boss, whose home is told too
    link(first, relations[1], kind)  # the same person's friend, whose home is told too
    facts.append(("attribute", first, kind, ""))
    facts.append(("attribute", end, kinds[1], ""))
    link(next(people), relation, kind)
    facts.append(("attribute", second, kind, ""))
    facts.append(("attribute", next(people), kind, ""))
    link(next(people), relation, kinds[1])
    facts.append(("attribute", next(people), kind, ""))
    facts.append(("attribute", next(people), kinds[2], ""))
    while len(facts) < size:  # long contexts: more of all these, as long as there are names
        link(next(people), relations[int(rng.integers(3))], kinds[int(rng.integers(3))])
        facts.append(("attribute", next(people), kinds[int(rng.integers(len(kinds)))], ""))
    return _World(facts, kind, relation)


@dataclass(frozen=True)
class Facts:
    """The task. Fields are the keys of `config.task`.

    Attributes:
      segments: sentences offered in each context, from 2 to MAX_SEGMENTS.
      hops: the kinds of question, drawn evenly: (1,), (2,) or (1, 2).
      seed: of every draw; example i of a split depends on (seed, split, i) alone.
      train_size, eval_size: lengths of the splits where no count is asked for.
    """

    segments: int = 16
    hops: tuple[int, ...] = (1, 2)
    seed: int = 0
    train_size: int = 20_000
    eval_size: int = 1_000

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= MAX_SEGMENTS:
            raise UserError(f"config.task.segments = {self.segments}: facts expects 2 to {MAX_SEGMENTS} sentences")
        if not self.hops or not set(self.hops) <= {1, 2}:
            raise UserError(f"config.task.hops = {self.hops}: expected some of 1 and 2")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(GROUPS[hop] for hop in sorted(set(self.hops)))

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        check_split(split)
        size = count if count is not None else self.train_size if split == "train" else self.eval_size
        return LazyExamples(size, lambda index: self.example(split, index))

    def ask(self, question: str) -> tuple[str, str]:
        return INSTRUCTION, f"\nQuestion: {question}\nAnswer:"

    def segment(self, paragraph: str) -> str:
        """After a space, as every sentence of a context: tokens of a name are others at the start of a line."""
        return f" {paragraph.strip()}"

    def tokenizer(self) -> Tokenizer | None:
        return None

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation, up to its first full stop, is the answer."""
        return same_text(self.answer_key(prediction), example.answer.rstrip("."))

    def answer_key(self, prediction: str) -> str:
        """The continuation up to its first full stop."""
        return prediction.split(".")[0].strip()

    def example(self, split: Split, index: int) -> Example:
        """Example `index` of a split; `support` names the sentence or the two sentences that the answer needs."""
        rng = example_rng(self.seed, split, index)
        held_out = split != "train"
        world = _make_world(rng, held_out, self.segments)
        hops = int(self.hops[int(rng.integers(len(self.hops)))])
        facts, support, who = self._choose(rng, world, hops)
        values = {kind: self._values(rng, kind, held_out) for kind in ATTRIBUTES}
        asked = facts[support[-1]]
        sentences, answer = [], ""
        for number, (form, a, word, b) in enumerate(facts):
            if form == "relation":
                sentences.append(RELATION_STATEMENT.format(a=a, relation=word, b=b))
                answer = f" {b}." if number == support[-1] else answer
            else:
                rest = values[word]  # rest[0] is the answer's value; the others go round without it
                value = rest[0] if facts[number] == asked else rest[1 + number % (len(rest) - 1)]
                sentences.append(ATTRIBUTES[word].statement.format(who=a, v=value))
                answer = f" {value}." if number == support[-1] else answer
        if asked[0] == "relation":
            question, stem = (text.format(a=asked[1], relation=asked[2]) for text in RELATION_QUESTION)
        else:
            forms = ATTRIBUTES[asked[2]].questions
            question, stem = (text.format(who=who) for text in forms[int(rng.integers(len(forms)))])
        order = rng.permutation(len(facts))
        place = {int(old): new for new, old in enumerate(order)}
        return Example(
            instruction=INSTRUCTION,
            context=tuple(" " + sentences[old] for old in order),
            question=f"\nQuestion: {question}\nAnswer: {stem}",
            answer=answer,
            support=tuple(place[number] for number in support),
            group=GROUPS[hops],
            uid=f"facts/{split}/{index}",
        )

    def _choose(
        self, rng: np.random.Generator, world: _World, hops: int
    ) -> tuple[list[tuple[str, str, str, str]], tuple[int, ...], str]:
        """The facts that are told, the numbers of those needed (the asked one last), and who is asked about."""
        facts = world.facts
        if hops == 2:
            _, a, relation, _ = facts[0]
            return facts[: self.segments], (0, 1), f"{a}'s {relation}"
        rivals = [
            number
            for number, (form, _, word, _) in enumerate(facts[: self.segments])
            if (form == "attribute" and word == world.kind) or (form == "relation" and word == world.relation)
        ]
        number = rivals[int(rng.integers(len(rivals)))]
        return facts[: self.segments], (number,), facts[number][1]

    @staticmethod
    def _values(rng: np.random.Generator, kind: str, held_out: bool) -> list[str]:
        return [str(value) for value in rng.permutation(lexicon.pool(ATTRIBUTES[kind].values, held_out))]
