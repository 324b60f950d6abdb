"""The section `eviction` of a run's configuration: a scorer of cache entries, trained on traces (docs/eviction.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

MEASURES = ("expected_attention", "snapkv", "keydiff", "h2o")
"""What `eviction.measures` may hold: policies whose scores the scorer sees."""
RANKED = ("golden", "ranking")
BEHIND = ("distil", "likelihood", "task")
"""Objectives that read an answer behind what is kept."""
ANSWERED = (*RANKED, *BEHIND)
"""What `eviction.objectives` and `eviction.answer_objectives` may hold: `RANKED` and `ANSWERED`."""
LATER = (
    "answer_objectives",
    "answer_steps",
    "answer_batch_size",
    "answer_learning_rate",
    "reading",
    "stream_size",
    "chunk",
    "keep_rates",
    "temperature",
)
"""Keys that the second stage alone looks at."""


@dataclass(frozen=True)
class EvictionConfig:
    """Learned eviction. A run that has `tasks` here trains a scorer of cache entries, not a pruner of prompts.

    Traces: `contexts` of each of the `tasks` (by a name of yours; each a task section with its `name`), numbered from
    `first` on, read once with up to `questions` questions; kept in `folder`, or where it is empty in the cache folder,
    for every run that asks for the same. Contexts have at most `tokens`, questions with their answers are cut to
    `question_tokens`. Stage "traces" looks at `entries` places of a context at a time, drawn anew for every batch (0:
    all), so that long contexts cost a step no more than short ones; the second stage reads all of it.

    The scorer: `heads` "shared" is one network a layer, "own" one for each key-value head, "layer" one that sees all
    heads of a token at once. `width` of its two hidden layers; `kernel`: neighbouring entries that it mixes (odd, 1:
    none). `measures`: policies whose scores it sees beside keys and values. `hidden`: the layer's input too.
    `question`: also how the question attends to the entries; such a policy needs the question read with the context,
    and no `measures`, which traces take before the question.

    Training: usefulness is the `largest` or `mean` attention of question and answer, times the norm of the value where
    `value_norm`. A context's questions count together, but one alone where `question`. `objectives` weigh "golden" and
    "ranking" over `train.steps`; where `answer_steps` > 0 a second stage follows, at `answer_learning_rate` where that
    is not `optim.learning_rate`, whose `answer_objectives` may hold "distil", "likelihood" and "task" too, at a rate of
    `keep_rates` drawn for each context. `across` is what the entries compete within. `samples`: rankings or subsets
    drawn for a context. `batch_size`, `answer_batch_size`: contexts of a step. `temperature`: of the relaxed mask.
    `sinks`: first entries that are always kept.

    `reading` is where the second stage has a context's entries from: "traces", or "anew", which the model reads in the
    step, by its low-rank updates where `model.train` is "lora". With `stream_size` it reads `chunk` tokens at a time
    through a cache of so many entries a head, evicting after each, else all at once.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    first: int = 0
    contexts: int = 24
    questions: int = 4
    tokens: int = 512
    entries: int = 0
    question_tokens: int = 128
    folder: str = ""
    heads: Literal["shared", "own", "layer"] = "layer"
    width: int = 64
    kernel: int = 1
    measures: tuple[str, ...] = MEASURES[:3]
    hidden: bool = False
    question: bool = False
    usefulness: Literal["largest", "mean"] = "largest"
    value_norm: bool = False
    across: Literal["head", "layer", "model"] = "model"
    objectives: dict[str, float] = field(default_factory=dict)
    answer_objectives: dict[str, float] = field(default_factory=dict)
    answer_steps: int = 0
    reading: Literal["traces", "anew"] = "traces"
    stream_size: int = 0
    chunk: int = 128
    keep_rates: tuple[float, ...] = (0.1, 0.25, 0.5)
    samples: int = 4
    batch_size: int = 8
    answer_batch_size: int = 2
    answer_learning_rate: float | None = None
    temperature: float = 1.0
    sinks: int = 4

    def check(self, need: Callable[[bool, str, str], None]) -> None:
        """Ranges and names, where there are tasks; `need(ok, key, expected)` raises where not ok."""
        if not self.tasks:
            return
        for name, task in self.tasks.items():
            known = isinstance(task.get("name"), str)
            need(known, f"eviction.tasks.{name}", "a section with the name of a task")
        for key in (
            "contexts",
            "questions",
            "tokens",
            "question_tokens",
            "width",
            "batch_size",
            "answer_batch_size",
            "chunk",
        ):
            need(getattr(self, key) > 0, f"eviction.{key}", "above 0")
        for key in ("first", "entries", "answer_steps", "sinks", "stream_size"):
            need(getattr(self, key) >= 0, f"eviction.{key}", "0 or more")
        need(self.kernel > 0 and self.kernel % 2 == 1, "eviction.kernel", "odd, 1 or more")
        need(not self.entries or self.kernel == 1, "eviction.entries", "0 with eviction.kernel, which mixes neighbours")
        need(self.temperature > 0, "eviction.temperature", "above 0")
        rate = self.answer_learning_rate
        need(rate is None or rate > 0, "eviction.answer_learning_rate", "above 0 or None")
        once = set(self.measures) <= set(MEASURES) and len(set(self.measures)) == len(self.measures)
        need(once, "eviction.measures", f"some of {', '.join(MEASURES)}, each once")
        expected = "none with eviction.question: traces measure a context before its question is read"
        need(not (self.question and self.measures), "eviction.measures", expected)
        anew = self.reading == "anew"
        expected = '"traces" with eviction.question: contexts are read anew without one in sight'
        need(not (anew and self.question), "eviction.reading", expected)
        need(anew or not self.stream_size, "eviction.stream_size", '0 without eviction.reading "anew"')
        streams = self.heads != "layer" and not self.hidden
        expected = '0 with eviction.heads "layer" or eviction.hidden: in a stream heads hold different tokens'
        need(streams or not self.stream_size, "eviction.stream_size", expected)
        fits = not self.stream_size or self.sinks <= self.stream_size
        need(fits, "eviction.stream_size", "0 or at least eviction.sinks")
        rates = bool(self.keep_rates) and all(0 < rate < 1 for rate in self.keep_rates)
        need(rates, "eviction.keep_rates", "keep rates in (0, 1)")
        later = self.answer_objectives if self.answer_steps else {}
        for key, given, known in (("objectives", self.objectives, RANKED), ("answer_objectives", later, ANSWERED)):
            wanted = key == "objectives" or self.answer_steps > 0
            fine = set(given) <= set(known) and (bool(given) or not wanted)
            need(fine, f"eviction.{key}", f"weights of one or more of {', '.join(known)}")
        alone = self.samples < 2 and {"ranking", "task"} & (set(self.objectives) | set(later))
        expected = 'above 1 for "ranking" and "task", whose baseline is the mean of the other draws'
        need(not alone, "eviction.samples", expected)
