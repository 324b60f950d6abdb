"""Answering from a whole prompt, a pruned one, or a pruned cache; from which prompt length on pruning is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rcp.config import ScorerSection
from rcp.cost.scoring import scoring
from rcp.cost.work import NOTHING, Stored, Work, decode_step, prefill
from rcp.nn.parameters import TransformerConfig

GRID = 1.02  # ratio of neighbouring prompt lengths that are looked at, where they are not neighbouring numbers


@dataclass(frozen=True)
class Setting:
    """How a model is used.

    Attributes:
      batch: prompts at a time. fixed: tokens of instruction and question, which are always read.
      new: tokens of the answer. keep_rate: share of the context's tokens that is kept, in (0, 1].
      segments: of the context.
    """

    shape: TransformerConfig
    scorer: ScorerSection
    stored: Stored
    batch: int
    fixed: int
    new: int
    keep_rate: float
    segments: int

    def kept(self, context: int) -> int:
        """Context tokens left: max(1, floor(rate * context)), none of none."""
        return min(context, max(1, int(self.keep_rate * context + 1e-9)))


@dataclass(frozen=True)
class Answer:
    """Work of a batch: `score` the prompts (nothing where they are read whole), `read` them, `decode` the answers.

    Attributes:
      tokens: of a prompt that are read.
      slots: of the cache while decoding, for what is kept of the prompt and for the answer. read_slots: while reading.
      step: one of the answer's `new` tokens.
    """

    tokens: int
    slots: int
    read_slots: int
    score: Work
    read: Work
    step: Work
    new: int

    @property
    def decode(self) -> Work:
        return self.step * self.new

    def total(self, measure: Callable[[Work], float]) -> float:
        """Sum of a measure (FLOPs, or seconds on a device) over the three."""
        return measure(self.score) + measure(self.read) + self.new * measure(self.step)


def whole(setting: Setting, context: int) -> Answer:
    """Reading all of the context."""
    return _answer(setting, context, NOTHING)


def pruned(setting: Setting, context: int) -> Answer:
    """Scoring all of it, reading what is kept."""
    s = setting
    score = scoring(s.shape, s.scorer, context + s.fixed, s.segments, batch=s.batch, stored=s.stored)
    return _answer(s, s.kept(context), score)


def evicted(setting: Setting, context: int) -> Answer:
    """Reading all of it, then keeping only a part in the cache. What decides which part is taken to cost nothing."""
    return _answer(setting, context, NOTHING, setting.kept(context))


def _answer(s: Setting, context: int, score: Work, cached: int | None = None) -> Answer:
    """`context` tokens are read; `cached` of them stay in the cache, None means all."""
    tokens = context + s.fixed
    slots = (context if cached is None else cached) + s.fixed + s.new
    read_slots = max(slots, tokens)
    read = prefill(s.shape, tokens, batch=s.batch, stored=s.stored)
    step = decode_step(s.shape, slots, batch=s.batch, stored=s.stored)
    return Answer(tokens, slots, read_slots, score, read, step, s.new)


def break_even(setting: Setting, measure: Callable[[Work], float], longest: int) -> int | None:
    """The prompt length (fixed tokens included) from which on pruning is cheaper by the measure, up to `longest`.

    Compared are all of it: scoring, reading and decoding the answer. Attention in blocks makes costs jump a little, so
    lengths `GRID` apart are looked at, and then all between the last that does not pay and the next. None: pruning
    does not pay at `longest`.
    """

    def pays(tokens: int) -> bool:
        context = tokens - setting.fixed
        return pruned(setting, context).total(measure) < whole(setting, context).total(measure)

    lengths = [setting.fixed + 1]
    while lengths[-1] < longest:
        lengths.append(min(longest, max(lengths[-1] + 1, int(lengths[-1] * GRID))))
    if not pays(lengths[-1]):
        return None
    for before, after in zip(reversed(lengths[:-1]), reversed(lengths[1:])):
        if not pays(before):
            low, high = before, after  # the first does not pay, the second does
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if pays(middle) else (middle, high)
            return high
    return lengths[0]
