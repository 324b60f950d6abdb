"""Texts of pruned contexts: nothing stands in them that is not in the context."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.data.text import ContextText
from rcp.data.tokenizer import CharacterTokenizer, SymbolTokenizer
from rcp.types import Tokenizer
from tests.data.test_pack import Bytes, Pairs


class Unclear(Bytes):
    """Decodes white space at the ends away, so that it is not known which token holds what."""

    def decode(self, ids) -> str:
        return super().decode(ids).strip()


SIGNS = "ab1901.,-_ \nàé漢三😀\u0301\u200d"
TOKENIZERS = (Bytes(), Pairs(), CharacterTokenizer(), Unclear())


def context_of(tokenizer: Tokenizer, texts: list[str]) -> ContextText:
    return ContextText(tokenizer, texts, [np.asarray(tokenizer.encode(text), np.int32) for text in texts])


def left(tokenizer: Tokenizer, texts: list[str], mask: np.ndarray) -> str:
    return context_of(tokenizer, texts).left(mask)[0]


def words(text: str) -> list[str]:
    """Words, and numbers with their points and signs."""
    return [found.group() for found in re.finditer(r"-?\d[\d.,]*\d|-\d|\w+", text)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_sign_word_or_number_arises_that_is_not_in_the_text(tokenizer: Tokenizer, data):
    texts = data.draw(st.lists(st.text(SIGNS, min_size=1, max_size=12), min_size=1, max_size=3))
    context = context_of(tokenizer, texts)
    for _ in range(2):  # the second time as the first
        count = sum(len(tokenizer.encode(text)) for text in texts)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
        found, kept = context.left(mask)
        assert (found, kept) == context_of(tokenizer, texts).left(mask)
        rest = iter("".join(texts))
        assert all(sign in rest for sign in found if sign != " ")
        assert all(word in "".join(texts) for word in words(found))
        assert set(kept) <= set(range(len(texts)))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(SIGNS + "\ufffd€", min_size=1, max_size=8), min_size=1, max_size=4), data=st.data())
def test_whole_segments_are_as_they_were(tokenizer: Tokenizer, texts, data):
    whole = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    sizes = [len(tokenizer.encode(text)) for text in texts]
    found, kept = context_of(tokenizer, texts).left(np.repeat(whole, sizes))
    assert kept == tuple(s for s in range(len(texts)) if whole[s])
    rest = found
    for s in kept:
        rest = rest.removeprefix(" ") if s - 1 not in kept and not rest.startswith(texts[s]) else rest
        assert rest.startswith(texts[s])
        rest = rest[len(texts[s]) :]
    assert not rest


def test_a_space_parts_what_was_not_side_by_side():
    def of(text: str, kept: str) -> str:
        """Tokens of which `kept` has the sign itself, and a tilde where it is dropped."""
        return left(Bytes(), [text], np.array([sign != "~" for sign in kept]))

    assert of("1 and 1901", "1~~~~~1901") == "1 1901"
    assert of("Bob saw cats", "B~~~~~~~~~ts") == "B ts"
    assert of("3,000 or 5", "3,~~~~~~~5") == "3, 5"
    assert of("3 or 4.5", "3~~~~~.5") == "3 .5"
    assert of("3.1 or 4.5", "3.~~~~~~.5") == "3. .5"
    assert of("6 - 1 = 5", "~~-~~~~~5") == "- 5"
    assert of("Bob saw (it).", "Bob~~~~~(it).") == "Bob(it).", "a word and a sign stay together"
    assert of("Bob saw it", "Bob~~~~ it") == "Bob it"


def test_between_segments_there_is_a_space_where_no_white_space_is():
    tokenizer = Bytes()
    texts = ["a1", "b2", "3c "]
    assert left(tokenizer, texts, np.array([1, 1, 0, 0, 1, 1, 1], bool)) == "a1 3c "
    assert left(tokenizer, texts, np.array([1, 1, 1, 1, 1, 1, 1], bool)) == "a1b23c "
    assert left(tokenizer, texts, np.array([0, 1, 1, 0, 0, 1, 0], bool)) == "1b c", "neighbours stay side by side"
    signs = np.array([1, 1, 0, 0, 1, 1], bool)
    assert left(tokenizer, ["1.", "ab.", "0"], signs) == "1. .0", "what follows a sign may be a digit"
    white = [np.array([0, 0, 1, kept, 1], bool) for kept in (False, True)]
    assert [left(tokenizer, ["001", " ", "0"], mask) for mask in white] == ["1 0", "1 0"], "white space was left out"


def test_words_of_a_closed_vocabulary_and_unknown_characters():
    assert left(SymbolTokenizer(["x", "=", "3"]), [" x = 3", " x"], np.array([1, 0, 1, 1], bool)) == " x 3 x"
    assert left(CharacterTokenizer(), ["5 € is 6"], np.arange(8) < 4) == "5 € ".strip(), "as it stands in the text"
