"""A user's own file: what is accepted, what is refused and with which words."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcp.data.pack import encode
from rcp.data.tasks.jsonl import Jsonl, split_segments
from rcp.data.tokenizer import SymbolTokenizer
from rcp.types import UserError

ROW = {"question": "Which?", "answer": "red", "context": "One.\nTwo.\n\nThree."}


def write(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_context_by_blank_lines_list_or_examples(tmp_path):
    rows = [
        ROW | {"support": [1], "group": "g", "instruction": "Read.", "forced": ["Two"]},
        ROW | {"context": ["a", "b\n"]},
        {"question": "q", "answer": "a", "examples": [{"question": "x", "answer": "y"}, "free text\n"]},
    ]
    task = Jsonl(test_path=write(tmp_path / "own.jsonl", *rows))
    first, second, third = task.examples("test")
    assert first.context == ("One.\nTwo.\n\n", "Three.\n\n") and first.support == (1,) and first.forced == ((0, 5, 8),)
    assert first.question == "Question: Which?\nAnswer:" and first.answer == " red\n" and first.instruction == "Read."
    assert first.uid.endswith("own.jsonl:1")
    assert second.context == ("a\n\n", "b\n") and second.support is None
    assert third.context == ("Question: x\nAnswer: y\n\n", "free text\n\n")
    assert third.answer == " a\n\n", "ends as the answers in the examples do"
    assert task.groups == ("", "g") and len(task.examples("test", 2)) == 2
    assert task.check(" red.\nmore", first) and not task.check("blue", first) and not task.check("", first)


@pytest.mark.parametrize("answer", ["one\n two.\n\nthree.", "one\r\n two.\r\n\r\nthree"])
def test_an_answer_of_several_lines(tmp_path, answer):
    """All of its lines count; what follows them does not."""
    (example,) = Jsonl(test_path=write(tmp_path / "own.jsonl", ROW | {"answer": answer})).examples("test")
    task = Jsonl(test_path=str(tmp_path / "own.jsonl"))
    for said in (example.answer, " one\n two.  \n\nthree", "one\n two.\n\nthree.\n\nQuestion: next"):
        assert task.check(said, example)
    for said in ("one", "one\ntwo.\n\nthree", "one\n two.", "one\n two.\nthree", "one\n two.\n\nthree more", ""):
        assert not task.check(said, example)


def test_division_of_one_file(tmp_path):
    path = write(tmp_path / "own.jsonl", *(ROW | {"question": f"q{n}"} for n in range(40)), "", "  ")
    parts = [{e.question for e in Jsonl(path).examples(split)} for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [32, 4, 4] and len(set.union(*parts)) == 40
    assert [*Jsonl(path).examples("train")] == [*Jsonl(path).examples("train")]
    other = write(tmp_path / "test.jsonl", ROW)
    task = Jsonl(path, test_path=other)
    assert (len(task.examples("train")), len(task.examples("validation")), len(task.examples("test"))) == (36, 4, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "q"', "own.jsonl:2: expected one JSON object a line"),
        ("[]", "own.jsonl:2: expected a JSON object, found list"),
        ({"answer": "a", "context": "c"}, "own.jsonl:2: expected 'question' to be text that is not empty"),
        (ROW | {"answer": 3}, "own.jsonl:2: expected 'answer' to be text"),
        ({"question": "q", "answer": "a"}, "own.jsonl:2: expected either 'context' or 'examples'"),
        (ROW | {"examples": ["a"]}, "own.jsonl:2: expected either"),
        (ROW | {"context": ""}, "own.jsonl:2: empty context"),
        (ROW | {"context": " \n\n "}, "own.jsonl:2: empty context"),
        (ROW | {"context": []}, "own.jsonl:2: empty context"),
        (ROW | {"context": ["a", " "]}, "own.jsonl:2: expected 'context' to be text or a list"),
        (ROW | {"context": 7}, "own.jsonl:2: expected 'context'"),
        ({"question": "q", "answer": "a", "examples": "x"}, "own.jsonl:2: expected 'examples' to be a list"),
        (
            {"question": "q", "answer": "a", "examples": ["x", 3]},
            r"own.jsonl:2: examples\[1\]: expected text or an object",
        ),
        (
            {"question": "q", "answer": "a", "examples": [{"question": "x"}]},
            r"own.jsonl:2: examples\[0\]: expected 'answer'",
        ),
        (ROW | {"support": [2]}, "own.jsonl:2: expected 'support' to be a list of segment numbers below 2"),
        (ROW | {"support": "0"}, "own.jsonl:2: expected 'support'"),
        (ROW | {"group": 1}, "own.jsonl:2: expected 'group' to be text"),
        (ROW | {"forced": "x"}, "own.jsonl:2: expected 'forced'"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "own.jsonl", ROW, row)
    with pytest.raises(UserError, match=message):
        Jsonl(test_path=path).examples("test")


@pytest.mark.parametrize("text", ["\n\nfirst\n\nsecond", "first\r\n\r\nsecond\r\n", "\r\n\r\nfirst\r\n\r\nsecond"])
def test_blank_lines_before_a_text_and_other_ends_of_lines(tmp_path, text):
    path = write(tmp_path / "own.jsonl", ROW | {"context": text})
    (example,) = Jsonl(test_path=path).examples("test")
    assert [segment.strip() for segment in example.context] == ["first", "second"]


def test_missing_or_empty_file(tmp_path):
    with pytest.raises(UserError, match=r"task.path: no file"):
        Jsonl(str(tmp_path / "no.jsonl")).examples("train")
    with pytest.raises(UserError, match=r"no rows"):
        Jsonl(write(tmp_path / "own.jsonl", "")).examples("train")
    with pytest.raises(UserError, match=r"too few"):
        Jsonl(write(tmp_path / "own.jsonl", ROW, ROW)).examples("train")
    with pytest.raises(UserError, match=r"task.path is empty"):
        Jsonl()
    with pytest.raises(UserError, match=r"expected a JSONL file for the train split"):
        Jsonl(test_path=write(tmp_path / "own.jsonl", ROW)).examples("train")
    with pytest.raises(UserError, match=r"task.holdout"):
        Jsonl("x", holdout=0.6)
    for fields in ({"question_format": "{q}"}, {"question_format": "A:"}, {"question_format": 'Say {"x"}: {question}'}):
        with pytest.raises(UserError, match=r"task.question_format = .*expected text with {question}"):
            Jsonl("x", **fields)
    with pytest.raises(UserError, match=r"task.example_format = .*expected text with {question} and {answer}"):
        Jsonl("x", example_format="{question}\n")
    assert Jsonl("x", question_format='Say {{"x"}}: {question}').ask("what")[1] == 'Say {"x"}: what'


def test_empty_context_is_also_refused_when_packed(tmp_path):
    example = Jsonl(test_path=write(tmp_path / "own.jsonl", ROW)).examples("test")[0]
    with pytest.raises(UserError, match=r"own.jsonl:1: empty context"):
        encode(example.__class__(**{**example.__dict__, "context": ()}), SymbolTokenizer(["a"]))


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a\r\n\r\nb", ("a\r\n\r\n", "b")),
        ("a\r\nb\r\n \t\r\n\r\n  c\r\n", ("a\r\nb\r\n \t\r\n\r\n  ", "c\r\n")),
        ("a\n\r\nb\r\n\nc", ("a\n\r\n", "b\r\n\n", "c")),
        ("\n\na\n\nb", ("\n\na\n\n", "b")),
        (" \r\n\t\n  a\n\nb", (" \r\n\t\n  a\n\n", "b")),
        ("\na", ("\na",)),
        ("a\rb\r\rc", ("a\rb\r\rc",)),
        ("\r\n \n", ()),
    ],
)
def test_ends_of_lines_and_blank_lines_before_a_text(text, segments):
    assert split_segments(text) == segments


@given(st.text(alphabet="ab \n\t.", max_size=40))
def test_texts_with_plain_ends_of_lines_are_cut_as_those_with_others(text):
    """The cuts do not hang on how lines end; blank lines before the text apart, they are those of a plain rule."""
    plain = split_segments(text)
    assert split_segments(text.replace("\n", "\r\n")) == tuple(segment.replace("\n", "\r\n") for segment in plain)
    rule = r"(?:[^\n]|\n(?![ \t]*\n))+(?:\n[ \t]*)*|(?:\n[ \t]*)+"
    begun = re.sub(r"\A(?:[ \t]*\n)+", "", text)
    cut = tuple(re.findall(rule, begun)) if begun.strip() else ()
    assert plain == ((text[: len(text) - len(begun)] + cut[0], *cut[1:]) if cut else ())


@given(st.lists(st.sampled_from([*"ab \n\t.", "\r\n"]), max_size=40).map("".join))
def test_segments_concatenate_to_the_text(text):
    segments = split_segments(text)
    assert "".join(segments) == (text if text.strip() else "")
    for segment in segments:
        assert segment.strip() and not re.search(r"\n[ \t]*\r?\n", segment.strip(" \t\r\n"))
    if text.strip():
        paragraphs = [part for part in re.split(r"\r?\n[ \t]*\r?\n", text) if part.strip(" \t\r\n")]
        assert len(segments) == len(paragraphs)
