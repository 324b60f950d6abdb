"""Text in, text out: a trained pruner applied to prompts that are not from any data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rcp.data.pack import EncodedExample, collate, encode, round_up
from rcp.data.tasks.jsonl import split_segments
from rcp.data.text import ContextText
from rcp.infer.exact import Kept, meet
from rcp.infer.trained import Trained
from rcp.nn.pruner import Cut, Granularity, Scores, exact, filling_order, prune
from rcp.types import Batch, Example, Role, Tokenizer, UserError

ROUND = 64
"""Static lengths are multiples of this, so that prompts of similar length share a compile."""
SEGMENTS = 8
"""The same for numbers of segments."""


@dataclass(frozen=True)
class PrunedPrompt:
    """One pruned prompt.

    Attributes:
      text: what is left of the context. Segments kept whole are as they were, letter by letter; one that was cut keeps
        the white space around it, which parts it from its neighbours.
      tokens, kept: tokens of the whole context and of `text`, each tokenised as one text.
      asked: tokens asked for; `kept` is just that wherever a text of this length is found, and else below it, or above
        where what is forced takes more. A context that has fewer is kept whole.
      unmended: tokens of the text that as many of the scorer's tokens as were asked for would have left.
      segments, kept_segments: the numbers of all segments and of those of which something was kept.
      note: what deserves to be said, or empty.
    """

    text: str
    tokens: int
    kept: int
    asked: int
    unmended: int
    segments: int
    kept_segments: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class PromptPruner:
    """Applies a scorer to texts.

    Attributes:
      score: (batch, budget) -> `Scores`, compiled; the batch has no answers, the budget is in tokens, int32 [batch].
      tokenizer: of the model that will read the result; budgets count its tokens.
      granularity, cut: how the budget is filled; as in `rcp.nn.pruner.prune`.
      max_tokens: the longest prompt that the scorer can read, instruction, context and question together.
      segment: from a paragraph to what the scorer reads of it, as in its training; only white space and signs at its
        end may differ. The text that is left of a segment kept whole is the user's.
      groups: names of the groups of prompts that the scorer tells apart, the first one for a prompt of no group named;
        empty where it tells none.
    """

    score: Callable[[Batch, jax.Array], Scores]
    tokenizer: Tokenizer
    granularity: Granularity
    cut: Cut = "end"
    max_tokens: int = 1 << 20
    segment: Callable[[str], str] = str
    groups: tuple[str, ...] = ()

    def __call__(
        self,
        contexts: Sequence[str],
        questions: Sequence[str],
        *,
        keep_rate: float | None = None,
        keep_tokens: int | None = None,
        force: Sequence[str] = (),
        instruction: str = "",
        group: str = "",
    ) -> list[PrunedPrompt]:
        """Prunes a batch of prompts, all in one pass.

        Args:
          contexts, questions: one of each a prompt. Segments of a context are separated by blank lines.
          keep_rate: fraction of each context's tokens to keep, in (0, 1]; at least one token is kept.
          keep_tokens: the same as a number. Exactly one of the two is given. A number above a context keeps it whole.
          force: regular expressions; what they match in the contexts is always kept.
          instruction: read by the scorer before the context, and not part of the result.
          group: of all these prompts, one of `groups`.

        Raises:
          UserError: no or an empty context, not as many questions, a budget out of range or below what is forced, a
            prompt over `max_tokens`, a group that the scorer does not know.
        """
        check_budget(keep_rate, keep_tokens)
        if group and group not in self.groups:
            known = f"one of {', '.join(self.groups)}" if self.groups else "none: this pruner tells no groups apart"
            raise UserError(f"--group {group!r}: expected {known}")
        of_group = self.groups.index(group) if group else 0
        patterns = [_pattern(expression) for expression in force]
        if len(contexts) != len(questions):
            raise UserError(f"{len(contexts)} contexts with {len(questions)} questions: expected one for each")
        texts = [split_segments(context) for context in contexts]
        encoded = [
            self._encode(text, question, instruction, patterns, number, of_group)
            for number, (text, question) in enumerate(zip(texts, questions))
        ]
        if not encoded:
            raise UserError("no prompt to prune: expected at least one context")
        length = round_up(max(example.length for example in encoded), ROUND)
        segments = round_up(max(len(example.context) for example in encoded), SEGMENTS)
        batch = collate(encoded, length, segments, len(encoded), pad_id=self.tokenizer.pad_id)
        tokens = [self._count("".join(pieces)) for pieces in texts]
        asked = [_at_rate(n, keep_rate) if keep_rate is not None else keep_tokens or 0 for n in tokens]
        forced = batch.forced.sum(axis=1)
        whole = np.greater_equal(asked, tokens)  # what the scorer reads may have more tokens than the text
        for i, example in enumerate(encoded):
            if forced[i] > asked[i] and not whole[i]:
                raise UserError(
                    f"{example.uid}: the budget of {asked[i]} tokens is below the {forced[i]} tokens that must be kept "
                    f"(--force); ask for at least {forced[i]} of the {tokens[i]}"
                )
        wanted = np.minimum(asked, tokens)
        written = [ContextText(self.tokenizer, pieces, own.context) for pieces, own in zip(texts, encoded)]
        masks, unmended = self._fill(batch, written, wanted, whole)
        pruned = []
        for i, mask in enumerate(masks):
            text, kept = written[i].left(mask)
            count = self._count(text)
            note = _note(asked[i], tokens[i], count)
            pruned.append(PrunedPrompt(text, tokens[i], count, asked[i], unmended[i], len(texts[i]), kept, note))
        return pruned

    def _fill(
        self, batch: Batch, written: Sequence[ContextText], wanted: np.ndarray, whole: np.ndarray
    ) -> tuple[list[np.ndarray], list[int]]:
        """For each prompt which context tokens are left, so that their text has `wanted` tokens; and `unmended`.

        All of them of the prompts that `whole` says are to be kept whole.
        """
        scores = self.score(batch, jnp.asarray(wanted, jnp.int32))  # once, whatever budgets are tried
        context = [row == Role.CONTEXT for row in batch.role]

        def at(budget: np.ndarray) -> list[Kept]:
            tokens = jnp.asarray(budget, jnp.int32)
            found = keep_and_rank(scores, batch, tokens, granularity=self.granularity, cut=self.cut)
            keep, rank = map(np.asarray, found)
            return [Kept(keep[i][inside], rank[i][inside]) for i, inside in enumerate(context)]

        def count(i: int, mask: np.ndarray) -> int:
            return int(wanted[i]) if whole[i] else self._count(written[i].left(mask)[0])  # so nothing is searched

        forced = [row[inside] for row, inside in zip(batch.forced, context)]
        masks, unmended = meet(at, count, wanted, forced)
        return [np.ones_like(mask) if whole[i] else mask for i, mask in enumerate(masks)], unmended

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) if text else 0

    def _encode(
        self,
        segments: Sequence[str],
        question: str,
        instruction: str,
        patterns: Sequence[re.Pattern[str]],
        number: int,
        group: int,
    ) -> EncodedExample:
        name = f"prompt {number + 1}"
        if not segments:
            raise UserError(f"{name}: empty context: expected text, its segments separated by blank lines")
        pieces = [self.segment(text) for text in segments]
        spans = tuple(
            (s, *_moved(match.span(), text, pieces[s]))
            for s, text in enumerate(segments)
            for pattern in patterns
            for match in pattern.finditer(text)
            if match.group().strip()
        )
        example = Example(instruction, tuple(pieces), question, question, forced=spans, uid=name)
        encoded = encode(example, self.tokenizer, index=number, group=group)
        encoded = replace(encoded, answer=np.zeros(0, np.int32))
        if encoded.length > self.max_tokens:
            raise UserError(
                f"{name}: {encoded.length} tokens with its question; the pruner reads at most {self.max_tokens}"
            )
        return encoded


@partial(jax.jit, static_argnames=("granularity", "cut"))
def keep_and_rank(
    scores: Scores, batch: Batch, budget: jax.Array, *, granularity: Granularity, cut: Cut
) -> tuple[jax.Array, jax.Array]:
    """The keep mask, and each token's place in the order in which tokens are kept, forced ones apart."""
    pruned = prune(scores, batch, budget, granularity=granularity, cut=cut)
    if granularity == "segment":
        return pruned.keep, filling_order(pruned.segment_rank, batch, cut)
    return pruned.keep, pruned.token_rank


def _moved(span: tuple[int, int], text: str, piece: str) -> tuple[int, int]:
    """A span of a paragraph, some of it no white space, as one of the segment made from it.

    Where more than the outer white space differs, characters are counted without white space; what the segment lacks of
    the paragraph's end is taken for its last one.
    """
    inner = text.strip()
    if inner in piece:
        shift = piece.index(inner) - text.index(inner)
        start, end = (min(max(place + shift, 0), len(piece)) for place in span)
        return start, end
    places = [place for place, character in enumerate(piece) if not character.isspace()]
    before, inside = (len("".join(part.split())) for part in (text[: span[0]], text[span[0] : span[1]]))
    first, last = (min(number, len(places) - 1) for number in (before, before + inside - 1))
    return places[first], places[last] + 1


def _note(asked: int, tokens: int, kept: int) -> str:
    if asked > tokens:
        return f"the budget of {asked} tokens is above the context's {tokens}: it is kept whole"
    return f"no text of exactly {asked} tokens was found: this one has {kept}" if kept != asked else ""


def _at_rate(tokens: int, keep_rate: float) -> int:
    """max(1, floor(rate * tokens)), for a rate that is meant as written: .29 of 100 is 29."""
    return max(1, int(keep_rate * tokens + 1e-4))


def check_budget(keep_rate: float | None, keep_tokens: int | None) -> None:
    if (keep_rate is None) == (keep_tokens is None):
        raise UserError("give either --keep-rate or --keep-tokens")
    if keep_rate is not None and not 0 < keep_rate <= 1:
        raise UserError(f"--keep-rate {keep_rate:g}: expected a fraction in (0, 1], the part of the context to keep")
    if keep_tokens is not None and keep_tokens < 1:
        raise UserError(f"--keep-tokens {keep_tokens}: expected at least 1")


def _pattern(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"--force {expression!r} is not a regular expression: {error}") from error


def pruner_of(trained: Trained) -> PromptPruner:
    """The pruner of a training run, for texts."""
    look, score = trained.look(), jax.jit(trained.score)
    return PromptPruner(
        score=lambda batch, budget: score(trained.weights, batch, look(batch), budget),
        tokenizer=trained.build.tokenizer,
        granularity=exact(trained.config.budget.granularity),
        cut=trained.config.budget.cut,
        max_tokens=trained.model.config.max_positions,
        segment=trained.build.task.segment,
        groups=trained.build.task.groups if trained.config.scorer.groups > 1 else (),
    )
