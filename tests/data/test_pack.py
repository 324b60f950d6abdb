"""Tokenising piece by piece, and batches of static shape."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.data.pack import EncodedExample, bucket, collate, drop_segments, encode
from rcp.data.spans import token_spans
from rcp.data.tasks.chain import Chain
from rcp.data.tokenizer import CharacterTokenizer, SymbolTokenizer
from rcp.types import Example, Role, Tokenizer, UserError


class Bytes:
    """One token a byte, so that characters are split over tokens."""

    vocab_size, pad_id, eos_id = 258, 256, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(ids).decode(errors="replace")


class Pairs(Bytes):
    """One token for each two bytes."""

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        return [
            int.from_bytes(data[i : i + 2], "big") + (65536 if len(data[i : i + 2]) == 2 else 0)
            for i in range(0, len(data), 2)
        ]

    def decode(self, ids) -> str:
        return b"".join(int(i % 65536).to_bytes(2 if i >= 65536 else 1, "big") for i in ids).decode(errors="replace")


EXAMPLE = Example("Facts:", (" Ann is 3.", " Bo has 12 cats."), "\nHow many cats?", " 12.", support=(1,), uid="x:1")


def test_protocol():
    assert isinstance(SymbolTokenizer(["a"]), Tokenizer) and isinstance(Bytes(), Tokenizer)


def test_pieces_concatenate_to_the_text():
    encoded = encode(EXAMPLE, Bytes(), index=4, group=1)
    batch = collate([encoded], 64, 3, 1, pad_id=256)
    real = batch.role[0] != Role.PAD
    text = EXAMPLE.instruction + "".join(EXAMPLE.context) + EXAMPLE.question + EXAMPLE.answer
    assert Bytes().decode(batch.tokens[0][real].tolist()) == text
    assert (batch.tokens[0][~real] == 256).all() and encoded.length == real.sum() == len(text)
    for s, segment in enumerate(EXAMPLE.context):
        assert Bytes().decode(batch.tokens[0][batch.segment[0] == s].tolist()) == segment
    for role, text in ((Role.INSTRUCTION, "Facts:"), (Role.QUESTION, EXAMPLE.question), (Role.ANSWER, " 12.")):
        assert Bytes().decode(batch.tokens[0][batch.role[0] == role].tolist()) == text
    assert batch.support[0].tolist() == [0, 1, -1] and batch.index[0] == 4 and batch.group[0] == 1
    unknown = encode(replace(EXAMPLE, support=None), Bytes())
    assert unknown.support.tolist() == [-1, -1]


def test_chain_round_trip():
    task = Chain()
    tokenizer = task.tokenizer()
    for example in task.examples("test", 20):
        text = "".join(example.context) + example.question + example.answer
        assert tokenizer.decode(tokenizer.encode(text)) == text
        pieces = encode(example, tokenizer)
        assert [*np.concatenate([*pieces.context, pieces.question, pieces.answer])] == tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs()])
@given(text=st.text(alphabet="ab é漢😀1", min_size=1, max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_forced_spans_cover_their_characters_and_no_other_token(tokenizer, text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    example = replace(EXAMPLE, context=(" z", text), forced=((1, start, end),))
    forced = encode(example, tokenizer).forced
    assert not forced[0].any()
    # The bytes of the span, and hence the tokens that hold any of them, counted independently.
    first, last = len(text[:start].encode()), len(text[:end].encode()) - 1
    width = 2 if isinstance(tokenizer, Pairs) else 1
    wanted = np.zeros(len(forced[1]), bool)
    wanted[first // width : last // width + 1] = True
    assert (forced[1] >= wanted).all()
    if text.isascii():
        assert (forced[1] == wanted).all()


@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs(), SymbolTokenizer(["ab", "c", "."]), CharacterTokenizer()])
@given(words=st.lists(st.sampled_from(["ab", "c", "."]), max_size=8), odd=st.text("é漢😀\ufffd\u0301", max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_characters_of_tokens_are_those_of_ever_longer_prefixes(tokenizer, words, odd):
    text = "".join(f" {word}" for word in words)
    if isinstance(tokenizer, Bytes):
        text = odd[:2] + text + odd[2:]
    ids = tokenizer.encode(text)
    text = tokenizer.decode(ids)
    spans = token_spans(tokenizer, ids, text)
    assert spans is not None
    # What stands before a token, and with it; of the last sign of a prefix it is not known whether it is whole.
    prefixes = [tokenizer.decode(ids[:j]) for j in range(len(ids) + 1)]
    for j, (start, end) in enumerate(spans):
        before = prefixes[j] if text.startswith(prefixes[j]) else prefixes[j][:-1]
        assert len(before) - ("\ufffd" in text) <= start <= len(before) <= end
        assert end == max(len(prefixes[j + 1]), end if "\ufffd" in text else 0)


def test_decoding_that_does_not_follow_the_text_is_told():
    class Sentences(Bytes):
        def decode(self, ids) -> str:
            return super().decode(ids) if bytes(ids).endswith(b".") else ""

    assert token_spans(Sentences(), list(b"ab."), "ab.") is None
    assert encode(replace(EXAMPLE, forced=((1, 4, 7),)), Sentences()).forced[1].all()


def test_many_forced_spans_are_found_in_one_pass():
    decoded = []

    class Counting(Bytes):
        def decode(self, ids) -> str:
            decoded.append(len(ids))
            return super().decode(ids)

    text = " ".join(f"item {i} costs {i * 7 % 97} dollars" for i in range(40))
    spans = tuple((0, *found.span()) for found in re.finditer(r"\d+", text))
    forced = encode(replace(EXAMPLE, context=(text,), support=None, forced=spans), Counting()).forced[0]
    assert Bytes().decode(np.frombuffer(text.encode(), np.uint8)[forced].tolist()) == re.sub(r"\D", "", text)
    assert sum(decoded) < 6 * len(text), "not every prefix anew"


def test_forced_reaches_the_batch():
    example = replace(EXAMPLE, forced=((1, 8, 10),))
    batch = collate([encode(example, Bytes())], 64, 2, 1)
    assert Bytes().decode(batch.tokens[0][batch.forced[0]].tolist()) == "12"


@st.composite
def encoded_examples(draw) -> list[EncodedExample]:
    def ids(least: int, most: int) -> np.ndarray:
        return np.asarray(draw(st.lists(st.integers(1, 99), min_size=least, max_size=most)), np.int32)

    examples = []
    for number in range(draw(st.integers(1, 5))):
        context = tuple(ids(1, 6) for _ in range(draw(st.integers(1, 4))))
        forced = tuple(np.zeros(len(piece), bool) for piece in context)
        support = np.zeros(len(context), np.int8)
        examples.append(
            EncodedExample(ids(0, 3), context, ids(1, 4), ids(1, 3), forced, support, number, 0, f"e{number}")
        )
    return examples


@given(examples=encoded_examples(), spare=st.integers(0, 3), extra=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_collate_keeps_every_token_once_and_in_order(examples, spare, extra):
    length = max(example.length for example in examples) + extra
    segments = max(len(example.context) for example in examples)
    batch = collate(examples, length, segments, len(examples) + spare)
    assert batch.tokens.shape == batch.role.shape == batch.segment.shape == batch.forced.shape
    assert batch.tokens.dtype == np.int32 and batch.role.dtype == np.int8 and batch.weight.dtype == np.float32
    assert batch.weight.tolist() == [1.0] * len(examples) + [0.0] * spare
    for row, example in enumerate(examples):
        real = batch.role[row] != Role.PAD
        assert real.sum() == example.length and real[: example.length].all()
        flat = np.concatenate([example.instruction, *example.context, example.question, example.answer])
        assert (batch.tokens[row][: example.length] == flat).all()
        assert ((batch.segment[row] >= 0) == (batch.role[row] == Role.CONTEXT)).all()
        assert (np.diff(batch.role[row][: example.length]) >= 0).all()
        for s, piece in enumerate(example.context):
            assert (batch.tokens[row][batch.segment[row] == s] == piece).all()
        assert (batch.support[row][len(example.context) :] == -1).all()


@given(length=st.integers(1, 200), lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_bucket_is_the_smallest_that_holds(length, lengths):
    found = bucket(length, lengths)
    fitting = [limit for limit in lengths if limit >= length]
    assert found == (min(fitting) if fitting else None)


def test_over_long_prompt_names_example_length_and_limit():
    encoded = encode(EXAMPLE, Bytes())
    with pytest.raises(UserError, match=rf"x:1: the prompt has {encoded.length} tokens, the limit is 20"):
        collate([encoded], 20, 2, 1)
    with pytest.raises(UserError, match=r"x:1: the context has 2 segments, the limit is 1"):
        collate([encoded], 64, 1, 1)
    with pytest.raises(ValueError, match=r"2 examples for a batch of 1"):
        collate([encoded, encoded], 64, 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": ()}, "x:1: empty context"),
        ({"context": ("",)}, "x:1: empty context"),
        ({"question": ""}, "x:1: empty question"),
        ({"answer": ""}, "x:1: empty answer"),
        ({"forced": ((5, 0, 1),)}, "x:1: forced span in segment 5 of 2"),
    ],
)
def test_bad_examples(change, message):
    with pytest.raises(UserError, match=message):
        encode(replace(EXAMPLE, **change), Bytes())


def test_drop_segments_leaves_out_the_last_that_are_not_needed():
    example = Example("", ("aaaa", "bbbb", "cccc", "dddd"), "q", "a", support=(3,), forced=((2, 0, 1),), uid="x")
    encoded = encode(example, Bytes())
    short = drop_segments(encoded, 14, 9)
    assert [Bytes().decode(ids.tolist()) for ids in short.context] == ["aaaa", "cccc", "dddd"]
    assert short.support.tolist() == [0, 0, 1] and [f.any() for f in short.forced] == [False, True, False]
    assert len(drop_segments(encoded, 99, 2).context) == 2
    with pytest.raises(UserError, match=r"limit is 4"):
        drop_segments(encoded, 4, 9)
    assert drop_segments(encoded, 99, 9).length == encoded.length


def test_symbol_tokenizer_errors():
    with pytest.raises(UserError, match=r"unknown symbol 'zz'"):
        SymbolTokenizer(["a", "b"]).encode(" a zz")
    for bad in (["a", "a"], ["a b"], [""]):
        with pytest.raises(ValueError, match=r"symbol"):
            SymbolTokenizer(bad)
