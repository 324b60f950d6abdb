"""Text in, text out: a trained pruner applied to prompts that are not from any data set."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rcp.data.pack import EncodedExample, collate, encode
from rcp.data.tasks.jsonl import split_segments
from rcp.infer.trained import Trained, load_trained
from rcp.nn.pruner import Granularity, Scores, budget_of_rate, prune
from rcp.policies import context_tokens
from rcp.types import Batch, Example, Role, Tokenizer, UserError

ROUND = 64
"""Static lengths are multiples of this, so that prompts of similar length share a compile."""


@dataclass(frozen=True)
class PrunedPrompt:
    """One pruned prompt.

    Attributes:
      text: what is left of the context; segments that were kept whole are left as they were, letter by letter.
      tokens, kept, asked: context tokens there were, were kept, and were asked for.
      segments, kept_segments: the numbers of all segments and of those of which something was kept.
      note: what deserves to be said, or empty.
    """

    text: str
    tokens: int
    kept: int
    asked: int
    segments: int
    kept_segments: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class PromptPruner:
    """Applies a scorer to texts.

    Attributes:
      score: (batch) -> `Scores`, compiled; the batch has no answers.
      tokenizer: of the model that will read the result; budgets count its tokens.
      granularity: how the budget is filled.
      max_tokens: the longest prompt that the scorer can read, instruction, context and question together.
    """

    score: Callable[[Batch], Scores]
    tokenizer: Tokenizer
    granularity: Granularity
    max_tokens: int = 1 << 20

    def __call__(
        self,
        contexts: Sequence[str],
        questions: Sequence[str],
        *,
        keep_rate: float | None = None,
        keep_tokens: int | None = None,
        force: Sequence[str] = (),
        instruction: str = "",
    ) -> list[PrunedPrompt]:
        """Prunes a batch of prompts, all in one pass.

        Args:
          contexts, questions: one of each a prompt. Segments of a context are separated by blank lines.
          keep_rate: fraction of each context's tokens to keep, in (0, 1]; at least one token is kept.
          keep_tokens: the same as a number. Exactly one of the two is given. A number above a context keeps it whole.
          force: regular expressions; what they match in the contexts is always kept.
          instruction: read by the scorer before the context, and not part of the result.

        Raises:
          UserError: no or an empty context, a budget out of range or below what is forced, a prompt over `max_tokens`.
        """
        _check_budget(keep_rate, keep_tokens)
        patterns = [_pattern(expression) for expression in force]
        texts = [split_segments(context) for context in contexts]
        encoded = [self._encode(t, q, instruction, patterns, i) for i, (t, q) in enumerate(zip(texts, questions))]
        if not encoded:
            raise UserError("no prompt to prune: expected at least one context")
        batch = self._batch(encoded)
        total = np.asarray(context_tokens(batch))
        if keep_rate is not None:
            asked = budget = np.asarray(budget_of_rate(batch, keep_rate))
        else:
            asked = np.full(len(encoded), keep_tokens, np.int32)
            budget = np.minimum(asked, total).astype(np.int32)
        forced = batch.forced.sum(axis=1)
        for i in np.flatnonzero(forced > budget):
            raise UserError(
                f"{encoded[i].uid}: the budget of {budget[i]} tokens is below the {forced[i]} tokens that must be kept "
                f"(--force); ask for at least {forced[i]} of the {total[i]}"
            )
        keep = np.asarray(_keep(self.score(batch), batch, jnp.asarray(budget), granularity=self.granularity))
        return [
            self._result(texts[i], encoded[i], keep[i][batch.role[i] == Role.CONTEXT], int(asked[i]))
            for i in range(len(encoded))
        ]

    def _encode(
        self, segments: Sequence[str], question: str, instruction: str, patterns: Sequence[re.Pattern[str]], number: int
    ) -> EncodedExample:
        name = f"prompt {number + 1}"
        if not segments:
            raise UserError(f"{name}: empty context: expected text, its segments separated by blank lines")
        spans = tuple(
            (s, *match.span())
            for s, text in enumerate(segments)
            for pattern in patterns
            for match in pattern.finditer(text)
            if match.group()
        )
        example = Example(instruction, tuple(segments), question, question, forced=spans, uid=name)
        encoded = replace(encode(example, self.tokenizer, index=number), answer=np.zeros(0, np.int32))
        if encoded.length > self.max_tokens:
            raise UserError(
                f"{name}: {encoded.length} tokens with its question; the pruner reads at most {self.max_tokens}"
            )
        return encoded

    def _batch(self, encoded: Sequence[EncodedExample]) -> Batch:
        length = -(-max(example.length for example in encoded) // ROUND) * ROUND
        segments = max(len(example.context) for example in encoded)
        return collate(encoded, length, segments, len(encoded), pad_id=self.tokenizer.pad_id)

    def _result(self, segments: Sequence[str], encoded: EncodedExample, keep: np.ndarray, asked: int) -> PrunedPrompt:
        ends = np.cumsum([len(ids) for ids in encoded.context])
        masks = np.split(keep, ends[:-1])
        pieces = [
            text if mask.all() else self.tokenizer.decode(ids[mask].tolist())
            for text, ids, mask in zip(segments, encoded.context, masks)
        ]
        total = len(keep)
        note = f"the budget of {asked} tokens is above the context's {total}: it is kept whole" if asked > total else ""
        return PrunedPrompt(
            text="".join(pieces),
            tokens=total,
            kept=int(keep.sum()),
            asked=asked,
            segments=len(segments),
            kept_segments=tuple(s for s, mask in enumerate(masks) if mask.any()),
            note=note,
        )


@partial(jax.jit, static_argnames="granularity")
def _keep(scores: Scores, batch: Batch, budget: jax.Array, *, granularity: Granularity) -> jax.Array:
    return prune(scores, batch, budget, granularity=granularity).keep


def _check_budget(keep_rate: float | None, keep_tokens: int | None) -> None:
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
    score = jax.jit(trained.score)
    return PromptPruner(
        score=partial(score, trained.weights),
        tokenizer=trained.build.tokenizer,
        granularity=trained.config.budget.granularity,
        max_tokens=trained.model.config.max_positions,
    )


def prune_files(
    workdir: str | Path,
    files: Sequence[str],
    question: str,
    *,
    keep_rate: float | None = None,
    keep_tokens: int | None = None,
    force: Sequence[str] = (),
    as_json: bool = False,
) -> list[PrunedPrompt]:
    """`rcp prune`: prints the pruned texts to stdout and the counts to stderr. `files` may hold "-" for stdin.

    Raises:
      UserError: as in `PromptPruner` and `load_trained`; a file that cannot be read.
    """
    _check_budget(keep_rate, keep_tokens)  # before anything is loaded
    contexts = [_read(name) for name in files]
    for name, context in zip(files, contexts):
        if not context.strip():
            raise UserError(f"{name}: empty context: expected text, its segments separated by blank lines")
    trained = load_trained(workdir)
    instruction, asked = trained.build.task.ask(question)  # as in the prompts that the scorer learned from
    pruned = pruner_of(trained)(
        contexts,
        [asked] * len(files),
        keep_rate=keep_rate,
        keep_tokens=keep_tokens,
        force=force,
        instruction=instruction,
    )
    for name, found in zip(files, pruned):
        if as_json:
            print(json.dumps({"file": name, **asdict(found)}, ensure_ascii=False))
        else:
            sys.stdout.write(found.text if found.text.endswith("\n") else found.text + "\n")
        counts = f"{name}: kept {found.kept} of {found.tokens} context tokens (asked for {found.asked}), "
        counts += f"from {len(found.kept_segments)} of {found.segments} segments"
        print(counts + (f"; {found.note}" if found.note else ""), file=sys.stderr)
    return pruned


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as text: {error}") from error
