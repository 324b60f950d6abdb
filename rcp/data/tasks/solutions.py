"""Worked problems as running text: those of GSM8K's training file and of MRD3, in windows of a number of tokens.

For language modelling on the text that the few-shot tasks read. The published test file is no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rcp.data import sources
from rcp.data.tasks.base import Split
from rcp.data.tasks.generated import expect
from rcp.data.tasks.long_text import LongText
from rcp.data.tasks.text_files import sentences, share
from rcp.data.tasks.word_problems import END, shot

DATASETS = ("gsm8k", "mrd3")


@dataclass(frozen=True)
class Solutions(LongText):
    """The task. Fields are the keys of `config.task`; of `LongText`'s the paths mean nothing here.

    The problems of the data sets are shuffled together, the same way whatever the `seed`, which orders the windows; the
    last `holdout` of them are the test split, as many before these the validation split, so that no problem is in two,
    nor in the test split of one seed and the training split of another. (MRD3's problems were evolved from GSM8K's,
    so that a problem's relatives may be.)

    Attributes:
      dataset: gsm8k, mrd3, or gsm8k+mrd3 for both together.
    """

    dataset: str = "gsm8k+mrd3"

    def _check_source(self) -> None:
        known = set(self.dataset.split("+")) <= set(DATASETS)
        expect(known, "dataset", self.dataset, f"some of {', '.join(DATASETS)}, joined by +")

    def _name(self, split: Split) -> str:
        return self.dataset

    def _texts(self, split: Split) -> list[Sequence[str]]:
        return [_sentences(self.dataset, split, self.holdout)]


@lru_cache(maxsize=4)
def _sentences(dataset: str, split: Split, holdout: float) -> list[str]:
    """The sentences of a split's problems, one after the other."""
    found = {p.question: p for name in dataset.split("+") for p in sources.problems(name, "train")}
    problems = list(found.values())
    order = np.random.default_rng(0).permutation(len(problems)).tolist()
    mine = share([problems[number] for number in order], split, holdout)
    return sentences(END.join(shot(problem).strip() for problem in mine))
