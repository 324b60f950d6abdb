"""A context read once and pruned in its cache, which then answers questions.

Query-agnostic: the context is read and pruned alone, and any number of questions are read behind what was kept.
Query-aware: the question is read with the context, so that policies see it, and decoding goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool

from rcp.eviction.base import Needs, Statistics
from rcp.eviction.compaction import stepped
from rcp.eviction.prompt import Eviction, ReadPrompt
from rcp.eviction.reconstruction import Repeat
from rcp.infer import programs
from rcp.infer.generate import Decoding, Generated
from rcp.infer.lossless import Lossless
from rcp.infer.sample import Sampling
from rcp.infer.weights import ModelWeights
from rcp.nn.cache import Context
from rcp.nn.step import DecodingWeights, Past
from rcp.nn.transformer import Transformer
from rcp.types import UserError


class PrunedContext(NamedTuple):
    """What is left of the contexts of a batch, ready for questions.

    Attributes:
      asked, kept: entries of each example's context, all layers and heads together [batch]; those of a question that
        was read with it are not counted.
      entries: how many there were.
      logits: after the last token read [batch, vocab].
      taken_back: last tokens read that are no part of the context any more, and are to be read again behind it.
    """

    context: Context
    asked: np.ndarray
    kept: np.ndarray
    entries: np.ndarray
    logits: Array
    taken_back: int = 0


class LosslessAnswers(NamedTuple):
    """Attributes:
    ids: the continuations.
    drafted, accepted, blocks: of each, int [batch]; see `rcp.infer.lossless.Lossless`.
    """

    ids: list[list[int]]
    drafted: np.ndarray
    accepted: np.ndarray
    blocks: np.ndarray


class ContextModel:
    """A model that reads contexts, keeps part of their cache and answers from it. Token ids in, token ids out.

    Compiled programs are kept by shape: lengths are padded to multiples of `multiple`, capacities of what is kept too,
    so that prompts, rates and lengths within these steps share a compile.

    Args:
      repeat: see `rcp.eviction.reconstruction`; for policies that read the prompt twice.
      chunk: as in `rcp.eviction.prompt.read_prompt`.
      needs: what is gathered in reading; None: what its own policy needs.
      runs: at most so many runs of layers may differ in capacity.
      int8: what is kept is rounded to 8 bits; tokens read behind it are not.
      int8_weights: tokens are decoded, and drafted, by weights rounded to 8 bits; contexts and questions are read, and
        drafts verified, by the weights as they are.
      weights: of `model`, from another `ContextModel`, so that both share the copies that decoding reads; then they
        alone are looked at.
    """

    def __init__(
        self,
        model: Transformer,
        eviction: Eviction,
        *,
        repeat: Repeat | None = None,
        needs: Needs | None = None,
        chunk: int | None = None,
        multiple: int = 64,
        runs: int = 4,
        int8: bool = False,
        int8_weights: bool = False,
        eos_ids: Sequence[int] = (),
        pad_id: int = 0,
        weights: ModelWeights | None = None,
    ):
        self.eviction = eviction
        self._needs = eviction.policy.needs if needs is None else needs
        if self._needs.reconstruction and repeat is None:
            raise ValueError(
                "the policy, or another that is read for, needs `repeat`: how the model is asked to repeat a prompt"
            )
        self._repeat, self._chunk, self._multiple, self._runs = repeat, chunk, multiple, runs
        self._int8, self._int8_weights = int8, int8_weights
        self._eos_ids, self._pad_id = tuple(eos_ids), pad_id
        self.weights = ModelWeights(model) if weights is None else weights

    def read(self, contexts: Sequence[Sequence[int]], questions: Sequence[Sequence[int]] | None = None) -> ReadPrompt:
        """Reads contexts, each with its question where policies are to see it.

        Raises:
          UserError: no context, an empty one, or not as many questions; none for a policy that looks at them.
        """
        if questions is None and self.eviction.policy.asks:
            raise UserError(
                f"policy {self.eviction.policy.name!r} looks at the question: expected one for each context"
            )
        asked = [()] * len(contexts) if questions is None else questions
        if not contexts or not all(map(len, contexts)) or len(asked) != len(contexts):
            raise UserError(
                f"{len(contexts)} contexts with {len(asked)} questions: expected at least one context, none of them "
                "empty, and a question for each or none at all"
            )
        rows = [[*context, *question] for context, question in zip(contexts, asked, strict=True)]
        tokens, valid = self._padded(rows)
        lengths = np.asarray([len(context) for context in contexts])
        question = valid & (np.arange(tokens.shape[1])[None] >= lengths[:, None])
        return programs.read(
            *self.weights.model,
            tokens,
            valid,
            question,
            needs=self._needs,
            chunk=self._chunk,
            repeat=self._repeat,
        )

    def prune(
        self,
        read: ReadPrompt,
        *,
        keep_rate: float = 1.0,
        keep_tokens: int | None = None,
        forced: Bool[Array, "batch entries"] | None = None,
        keys: Array | None = None,
        take_back: int = 0,
    ) -> PrunedContext:
        """Keeps exactly max(1, floor(keep_rate * tokens)) entries a head, the mean over layers and heads.

        Args:
          keep_tokens: so many entries a head at most, whatever the rate; all where there are fewer.
          forced, keys: see `rcp.eviction.prompt.choose`.
          take_back: last tokens, of the question, that policies see and that are then to be read again behind the rest.

        Raises:
          UserError: a rate outside (0, 1], or no tokens to keep.
        """
        if not 0 < keep_rate <= 1 or (keep_tokens is not None and keep_tokens < 1):
            raise UserError(f"keep_rate {keep_rate}, keep_tokens {keep_tokens}: expected a rate in (0, 1], tokens > 0")
        most = np.int32(np.iinfo(np.int32).max if keep_tokens is None else keep_tokens)
        given = (read, np.float32(keep_rate), most, forced, keys)
        kept, capacity, counts = programs.choose(*self.weights.model, *given, eviction=self.eviction)
        capacities = self._capacities(np.asarray(capacity), read.cache.capacity)
        options = {"capacities": capacities, "repack": self.eviction.repack, "int8": self._int8}
        read = read._replace(statistics=Statistics())  # so that readings with other needs share a program
        context = programs.prune(*self.weights.model, read, kept, np.int32(take_back), **options)
        asked, left, entries = (np.asarray(x) for x in counts)
        return PrunedContext(context, asked, left, entries, read.logits, take_back)

    def answer(
        self, pruned: PrunedContext | Context, questions: Sequence[Sequence[int]], *, max_new: int = 64, drawn=None
    ) -> list[list[int]]:
        """Continuations of questions read behind a context each, or all behind the same one.

        Raises:
          UserError: an empty question, or neither one context nor one for each.
        """
        context = pruned.context if isinstance(pruned, PrunedContext) else pruned
        tokens, valid = self._asked(context, questions)
        options = self._decoding(max_new)
        given = (context, tokens, valid, drawn, self._decoded_by)
        return self._ids(programs.answer(*self.weights.model, *given, **options))

    def answer_lossless(
        self,
        read: ReadPrompt,
        pruned: PrunedContext | Context,
        questions: Sequence[Sequence[int]] | None = None,
        *,
        gamma: int = 4,
        max_new: int = 64,
        drawn: Sampling | None = None,
    ) -> LosslessAnswers:
        """What the whole context answers, drafted behind the pruned one; see `rcp.infer.lossless`.

        Args:
          read: what `pruned` was made of, in a batch of one or as many as there are questions.
          questions: None goes on from what was read, the question with it.
          gamma: tokens drafted a block.

        Raises:
          UserError: as `answer`; no token to draft or to decode; a context of int8 whose positions are repacked.
        """
        if gamma < 1 or max_new < 1:
            raise UserError(f"gamma {gamma}, max_new {max_new}: expected both from 1 on")
        if self._int8 and self.eviction.repack:
            raise UserError("lossless decoding turns repacked keys back to their positions: int8 keys cannot be turned")
        context = pruned.context if isinstance(pruned, PrunedContext) else pruned
        if isinstance(pruned, PrunedContext) and pruned.taken_back:
            raise UserError("tokens were taken back from the pruned context, and are still in what was read")
        if len(context.position) != len(read.logits):
            raise UserError(f"{len(context.position)} pruned contexts, {len(read.logits)} read: expected the same ones")
        tokens = valid = None
        if questions is not None:
            tokens, valid = self._asked(context, questions)
        options = self._decoding(max_new) | {"gamma": gamma, "turned": self.eviction.repack}
        both = (read.cache, read.logits, context)
        by = (self.weights.layers, self._decoded_by)
        found = programs.lossless(*self.weights.model, *both, tokens, valid, drawn, *by, **options)
        counts = (np.asarray(x) for x in (found.drafted, found.accepted, found.blocks))
        return LosslessAnswers(self._ids(found), *counts)

    def go_on(self, pruned: PrunedContext, *, max_new: int = 64, drawn: Sampling | None = None) -> list[list[int]]:
        """Continuations of what was read, the question with it.

        Raises:
          UserError: tokens of it were taken back, so that there is nothing to go on from.
        """
        if pruned.taken_back:
            raise UserError(f"{pruned.taken_back} tokens were taken back: read them again with `answer`")
        given = (pruned.context, pruned.logits, drawn, self._decoded_by)
        return self._ids(programs.go_on(*self.weights.model, *given, **self._decoding(max_new)))

    def stream_answer(
        self,
        pruned: PrunedContext | Context,
        questions: Sequence[Sequence[int]] | None = None,
        *,
        max_new: int = 64,
        part: int = 8,
        drawn: Sampling | None = None,
    ) -> Iterator[list[list[int]]]:
        """The tokens of `answer`, or without questions of `go_on`, as they are decoded: of each row the next ones.

        They come `part` at a time, fewer at the end; a row that has ended has none. One compile serves every `part`.

        Raises:
          UserError: as `answer` and `go_on`, before anything is decoded; no token to decode or to wait for.
        """
        if part < 1 or max_new < 1:
            raise UserError(f"part {part}, max_new {max_new}: expected both from 1 on")
        context, logits = (pruned.context, pruned.logits) if isinstance(pruned, PrunedContext) else (pruned, None)
        tokens = valid = None
        if questions is not None:
            tokens, valid = self._asked(context, questions)
        elif not isinstance(pruned, PrunedContext):
            raise UserError("a context alone holds nothing to go on from: expected questions")
        elif pruned.taken_back:
            raise UserError(f"{pruned.taken_back} tokens were taken back: read them again as questions")
        given = (context, logits, tokens, valid)
        started = programs.begin_answer(*self.weights.model, *given, max_new=max_new, pad_id=self._pad_id)
        past, position, state = started
        return self._parts(past, position, state, part, drawn)

    def _parts(
        self, past: Past, position: Array, state: Decoding, part: int, drawn: Sampling | None
    ) -> Iterator[list[list[int]]]:
        """The rest of `stream_answer`."""
        said, max_new = 0, state.tokens.shape[1]
        while said < max_new:
            given = (past, position, state, np.int32(said + part), drawn, self._decoded_by)
            options = {"eos_ids": self._eos_ids, "pad_id": self._pad_id}
            state = programs.advance_answer(*self.weights.model, *given, **options)
            tokens, lengths = np.asarray(state.tokens), np.asarray(state.length)
            yield [row[said:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
            said = int(state.number)
            if bool(np.all(state.done)):
                return

    @property
    def _decoded_by(self) -> DecodingWeights:
        return self.weights.rounded if self._int8_weights else self.weights.layers

    def _capacities(self, counts: np.ndarray, entries: int) -> tuple[int, ...]:
        """One a layer, which hold `counts` entries of each; there are `entries` slots before pruning."""
        return stepped(counts, self._multiple, self._runs)

    def _decoding(self, max_new: int) -> dict[str, Any]:
        return {"max_new": max_new, "eos_ids": self._eos_ids, "pad_id": self._pad_id}

    def _asked(self, context: Context, questions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        if not questions or not all(map(len, questions)) or len(context.position) not in (1, len(questions)):
            raise UserError(
                f"{len(questions)} questions for {len(context.position)} contexts: expected one context, or one for "
                "each question, and no empty question"
            )
        return self._padded(questions)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        width = -(-max(map(len, rows)) // self._multiple) * self._multiple
        tokens = np.full((len(rows), width), self._pad_id, np.int32)
        valid = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], valid[i, : len(row)] = row, True
        return tokens, valid

    def _ids(self, out: Generated | Lossless) -> list[list[int]]:
        lengths = np.asarray(out.length)
        return [row[:length].tolist() for row, length in zip(np.asarray(out.tokens), lengths, strict=True)]
