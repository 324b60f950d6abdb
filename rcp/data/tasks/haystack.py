"""Text that has nothing to do with the question: sentences of our own making, or of a user's text file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rcp.data.tasks import haystack_words as words
from rcp.data.tasks.base import Split
from rcp.data.tasks.generated import Generated, expect
from rcp.data.tasks.text_files import documents, share

HOLDOUT = 0.1
"""The share of a user's text that validation draws from, and the same again for test."""
THIRDS = ("beginning", "middle", "end")


@dataclass(frozen=True)
class Haystack(Generated):
    """A `Generated` whose context is mostly filler. Fields are the keys of `config.task`.

    Attributes:
      haystack: "sentences" draws sentences from templates, no two contexts alike; "repeated" goes round the same five.
      haystack_path: a text file (or a folder of *.txt files) that the filler is taken from instead: its sentences in
        their order, from a random place on. Each split has a part of it. A context that is longer goes round it.
    """

    haystack: Literal["sentences", "repeated"] = "sentences"
    haystack_path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.haystack in ("sentences", "repeated"), "haystack", self.haystack, "sentences or repeated")

    def filler(self, rng: np.random.Generator, split: Split, avoid: Sequence[str]) -> Iterator[str]:
        """Sentences without end, each after a space; none from a file holds a text of `avoid` (in any case)."""
        if self.haystack_path:
            return self._from_file(rng, split, [text.lower() for text in avoid])
        if self.haystack == "repeated":
            return itertools.cycle([f" {sentence}" for sentence in words.REPEATED])
        return _made(rng)

    def _from_file(self, rng: np.random.Generator, split: Split, avoid: Sequence[str]) -> Iterator[str]:
        texts = documents(self.haystack_path, "haystack_path")
        found = [sentence for text in texts for sentence in share(text, split, HOLDOUT)]
        expect(bool(found), "haystack_path", self.haystack_path, "a text of at least three sentences")
        start = int(rng.integers(len(found)))
        turned = (f" {' '.join(found[(start + n) % len(found)].split())}" for n in range(len(found)))
        return itertools.cycle(text for text in turned if not any(word in text.lower() for word in avoid))


def _made(rng: np.random.Generator) -> Iterator[str]:
    while True:
        template = words.TEMPLATES[int(rng.integers(len(words.TEMPLATES)))]
        slots = {
            name: pool[int(rng.integers(len(pool)))] for name, pool in words.SLOTS.items() if f"{{{name}}}" in template
        }
        text = template.format(**slots)
        yield f" {text[0].upper()}{text[1:]}"


def places(rng: np.random.Generator, filler: int, needles: int, depth: float | None = None) -> list[int]:
    """Where so many needles stand among so many pieces of filler, in any order, as places of the whole.

    `depth` None: anywhere; else one after another behind this share of the filler.
    """
    if depth is None:
        return rng.choice(filler + needles, needles, replace=False).tolist()
    return [round(depth * filler) + place for place in rng.permutation(needles).tolist()]


def third(place: int, total: int) -> str:
    """The third of a context that a place is in."""
    return THIRDS[3 * place // total]
