"""Pruned prompts back to text, as their task writes them.

All text of pruned prompts is made here: printed ones, those sent to an endpoint, and those that a reward is asked for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcp.data.pipeline import EncodedTask
from rcp.data.spans import REPLACEMENT, token_spans
from rcp.types import Batch, Example, Tokenizer

NEAR = 32  # characters that are looked at for a number before what was left out
_ENDS, _BEGINS = re.compile(r"\d[^\w\s]*$"), re.compile(r"[^\w\s]*(\d|$)")


class _Cut(NamedTuple):
    """What is left of a segment that is cut, its outer white space apart; whether its first and last character are."""

    text: str
    first: bool
    last: bool


class _Piece:
    """A segment whose tokens may be dropped.

    Characters of the text are kept where all the tokens that hold a part of them are. Where `token_spans` cannot tell,
    each run of tokens is decoded by itself.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, ids: np.ndarray):
        self._tokenizer, self._ids = tokenizer, ids
        decoded = tokenizer.decode(ids.tolist())
        self._spans = token_spans(tokenizer, ids.tolist(), decoded)
        self._text = _aligned(decoded, text)
        signs = REPLACEMENT in self._text and REPLACEMENT not in text  # of characters that the tokenizer does not know
        self._known = np.array([not signs or character != REPLACEMENT for character in self._text], bool)
        self._outer = len(self._text) - len(self._text.lstrip()), len(self._text.rstrip()) - 1
        self._last: tuple[bytes, _Cut] = b"", _Cut("", False, False)

    def left(self, mask: np.ndarray) -> _Cut:
        """What the tokens of a mask bool [len(ids)] leave."""
        key = mask.tobytes()
        if key != self._last[0]:  # most of the masks that a prompt is tried with change one segment
            self._last = key, self._runs(mask) if self._spans is None else self._characters(mask, self._spans)
        return self._last[1]

    def _characters(self, mask: np.ndarray, spans: np.ndarray) -> _Cut:
        dropped = np.zeros(len(self._text) + 1, int)
        np.add.at(dropped, spans[~mask, 0], 1)
        np.add.at(dropped, spans[~mask, 1], -1)
        kept = (np.cumsum(dropped)[:-1] == 0) & self._known
        places = np.flatnonzero(kept)
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
        text = _joined([self._text[run[0] : run[-1] + 1] for run in runs]).strip()
        return _Cut(text, bool(kept[self._outer[0]]), bool(kept[self._outer[1]])) if text else _Cut("", False, False)

    def _runs(self, mask: np.ndarray) -> _Cut:
        places = np.flatnonzero(mask)
        runs = np.split(self._ids[places], np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
        texts = [self._tokenizer.decode(run.tolist()) for run in runs]
        if REPLACEMENT not in self._text:
            texts = [text.replace(REPLACEMENT, "") for text in texts]
        # It is not known where it ends: that it reaches its neighbours is not said.
        return _Cut(_joined([text for text in texts if text]).strip(), False, False)


class ContextText:
    """The segments of a context, of which masks over their tokens leave texts."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], whole: Sequence[np.ndarray]):
        """`texts` and `whole`: the text of each segment, and its ids; only its outer white space may differ in them."""
        self._tokenizer, self._texts, self._whole = tokenizer, texts, whole
        self._ends = np.cumsum([len(ids) for ids in whole])[:-1]
        self._pieces: dict[int, _Piece] = {}

    def left(self, mask: np.ndarray) -> tuple[str, tuple[int, ...]]:
        """The text of the kept tokens, bool [context tokens], and the numbers of the segments that it is from.

        A segment that is kept whole stands as it is, letter by letter; one that is cut keeps the white space around it,
        which parts it from its neighbours. Characters of which a part is dropped are dropped. Where something was left
        out between two letters, beside a digit or between the signs of two numbers, and no white space parts them,
        there is a space: no word or number arises that is not in the text.
        """
        kept, out, end, joined = [], "", "", True
        for s, (text, some) in enumerate(zip(self._texts, np.split(mask, self._ends), strict=True)):
            uncut = bool(np.all(some))
            body, first, last = _Cut(text, True, True) if uncut else self._piece(s).left(some)
            if not body:
                joined &= uncut
                continue
            if not uncut:
                body = text[: len(text) - len(text.lstrip())] + body
            out += end
            out += body if joined and first else _between(out, body) + body
            end, joined = "" if uncut else text[len(text.rstrip()) :], last
            kept.append(s)
        return out, tuple(kept)

    def _piece(self, s: int) -> _Piece:
        if s not in self._pieces:
            self._pieces[s] = _Piece(self._tokenizer, self._texts[s], self._whole[s])
        return self._pieces[s]


def _aligned(decoded: str, text: str) -> str:
    """`decoded` with the characters of the text it was encoded from where the tokenizer knows no better."""
    inner, own = decoded.strip(), text.strip()
    if len(inner) != len(own) or any(x not in (y, REPLACEMENT) for x, y in zip(inner, own, strict=True)):
        return decoded
    return decoded.replace(inner, own, 1) if inner else decoded


def _joined(runs: Sequence[str]) -> str:
    """Texts between which something was left out."""
    out = ""
    for run in runs:
        out += _between(out, run) + run
    return out


def _between(before: str, after: str) -> str:
    """What parts two texts between which something was left out: a space where one word or number would arise."""
    left, right = before[-1:], after[:1]
    if not left or not right or left.isspace() or right.isspace():
        return ""
    if left.isnumeric() or right.isnumeric() or (_of_word(left) and _of_word(right)):
        return " "
    return " " if _ENDS.search(before[-NEAR:]) and _BEGINS.match(after) else ""  # "3." and ",5", or "," and then "5"


def _of_word(character: str) -> bool:
    return re.match(r"\w", character) is not None or unicodedata.category(character).startswith("M")


class Sent(NamedTuple):
    """A prompt as text: instruction, what is left of the context, question."""

    instruction: str
    context: str
    question: str

    @property
    def text(self) -> str:
        return self.instruction + self.context + self.question


class Texts:
    """The texts of pruned prompts, as their task writes them."""

    def __init__(self, encoded: EncodedTask, tokenizer: Tokenizer):
        """`encoded[i]` is the example of the batch rows with index i."""
        self.encoded, self.tokenizer = encoded, tokenizer
        self._contexts: dict[int, ContextText] = {}

    def of(self, batch: Batch, keep: np.ndarray) -> list[Sent]:
        """The text that keep masks bool [batch, tokens] leave of a batch of whole prompts; the answers are left out."""
        return [self.of_mask(index, row) for index, row in zip(batch.index, keep, strict=True)]

    def example(self, index: int) -> Example:
        return self.encoded.examples[int(index)]

    def of_mask(self, index: int, keep: np.ndarray) -> Sent:
        """The text that a keep mask over a whole prompt, as it stands in a batch, leaves of an example."""
        whole, example = self.encoded[int(index)], self.example(index)
        count = sum(len(piece) for piece in whole.context)
        text = self._left(int(index), keep[len(whole.instruction) :][:count])
        return Sent(example.instruction, text, example.question)

    def context(self, batch: Batch, row: int, mask: np.ndarray) -> str:
        """What a mask over its context tokens leaves of the context of a whole prompt."""
        return self._left(int(batch.index[row]), mask)

    def _left(self, index: int, mask: np.ndarray) -> str:
        if index not in self._contexts:
            example, whole = self.example(index), self.encoded[index]
            texts = example.context if whole.numbers is None else [example.context[n] for n in whole.numbers]
            self._contexts[index] = ContextText(self.tokenizer, texts, whole.context)
        return self._contexts[index].left(mask)[0]
