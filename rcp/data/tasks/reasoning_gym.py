"""Problems of the reasoning-gym library (arXiv 2505.24760), with worked examples as context."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar

from rcp.data.tasks.base import SPLITS, LazyExamples, Split, check_split, example_rng
from rcp.types import Example, Tokenizer, UserError

# reasoning-gym makes item i from (seed + i), so seeds of different splits have to be far apart.
_STRIDE = 10_000_000
_PLACE = {"pool": 0, **{split: 1 + number for number, split in enumerate(SPLITS)}}


@dataclass(frozen=True)
class ReasoningGym:
    """The task. Fields are the keys of `config.task`.

    Attributes:
      families: names of the families that questions come from, in turn.
      shots: candidate examples in each context.
      distractor_families: families that `distractors` of the shots come from; the others are of the question's family.
      distractors: how many shots are of another family. Where there are some, the others are the example's support.
      params: options of a family, by its name, such as {"chain_sum": {"max_terms": 2}}.
      pool_size: worked examples of each family that shots are drawn from.
      seed: of the problems and of every draw.
      train_size, eval_size: lengths of the splits where no count is asked for.
    """

    families: tuple[str, ...] = ("chain_sum",)
    shots: int = 8
    distractor_families: tuple[str, ...] = ()
    distractors: int = 0
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pool_size: int = 1_000
    seed: int = 0
    train_size: int = 10_000
    eval_size: int = 500

    answer_end: ClassVar[str] = "\n\n"

    def __post_init__(self) -> None:
        if not self.families:
            raise UserError("config.task.families is empty: expected at least one reasoning-gym family")
        if self.shots < 1 or not 0 <= self.distractors <= self.shots:
            raise UserError(
                f"config.task.distractors = {self.distractors}: expected 0 to config.task.shots = {self.shots}, "
                "which has to be at least 1"
            )
        if self.distractors and not self.distractor_families:
            raise UserError(
                "config.task.distractor_families is empty: config.task.distractors shots have to come from somewhere"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        return self.families

    def ask(self, question: str) -> tuple[str, str]:
        return "", f"Q: {question.strip()}\nA:"

    def segment(self, paragraph: str) -> str:
        return f"{paragraph.strip()}\n\n"

    def tokenizer(self) -> Tokenizer | None:
        return None

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        check_split(split)
        size = count if count is not None else self.train_size if split == "train" else self.eval_size
        for family in (*self.families, *self.distractor_families):
            self._dataset(family, "pool")
        return LazyExamples(size, lambda index: self.example(split, index))

    def example(self, split: Split, index: int) -> Example:
        """Example `index` of a split: shots as segments, then the question."""
        rng = example_rng(self.seed, split, index)
        family = self.families[index % len(self.families)]
        item = self._dataset(family, split)[index]
        sources = [family] * (self.shots - self.distractors)
        others = [name for name in self.distractor_families if name != family] or list(self.distractor_families)
        sources += [others[int(rng.integers(len(others)))] for _ in range(self.distractors)]
        shots, used = [], {item["question"]}
        for source in sources:
            pool = self._dataset(source, "pool")
            for _ in range(100):
                worked = pool[int(rng.integers(self.pool_size))]
                if worked["question"] not in used:
                    break
            else:
                raise UserError(f"config.task.families: {source} has too few different problems for {self.shots} shots")
            used.add(worked["question"])
            shots.append(f"Q: {worked['question'].strip()}\nA: {worked['answer']}{self.answer_end}")
        order = [int(i) for i in rng.permutation(len(shots))]
        own = tuple(place for place, i in enumerate(order) if i < self.shots - self.distractors)
        return Example(
            instruction="",
            context=tuple(shots[i] for i in order),
            question=self.ask(item["question"])[1],
            answer=f" {item['answer']}{self.answer_end}",  # a blank line is another token than a line's end
            support=own if self.distractors else None,
            group=family,
            uid=f"reasoning_gym/{family}/{split}/{index}",
        )

    def check(self, prediction: str, example: Example) -> bool:
        """The family's own judgement of the text before the next blank line or question."""
        _, family, split, index = example.uid.split("/")
        dataset = self._dataset(family, split)
        return dataset.score_answer(self.answer_key(prediction), dataset[int(index)]) >= 0.999

    def answer_key(self, prediction: str) -> str:
        """The text before the next blank line or question."""
        return re.split(r"\n\s*\n|\nQ:", prediction)[0].strip()

    def _dataset(self, family: str, split: str):
        options = tuple((key, _hashable(value)) for key, value in sorted(self.params.get(family, {}).items()))
        return _dataset(family, self.seed * len(_PLACE) * _STRIDE + _PLACE[split] * _STRIDE, options)


def _hashable(value: Any) -> Any:
    """An option with tuples for lists: a config that was read from JSON has lists."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


@cache
def _dataset(family: str, seed: int, options: tuple[tuple[str, Any], ...]):
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"the reasoning_gym task needs `pip install 'rcp[reasoning]'` ({error})") from None
    if family not in DATASETS:
        near = get_close_matches(family, DATASETS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config.task.families: reasoning-gym has no family {family!r}{hint}")
    try:
        return reasoning_gym.create_dataset(family, seed=seed, size=_STRIDE, **dict(options))
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"config.task.params: reasoning-gym refused the options of {family!r}: {error}") from None
