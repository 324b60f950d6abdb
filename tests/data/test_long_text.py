"""Windows of a text: within the length, side by side, no two splits share any; bad files are named."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.config_file import load_config
from rcp.data.pack import encode
from rcp.data.tasks.long_text import LongText
from rcp.data.tasks.text_files import LONGEST, read_documents, sentences, share
from rcp.types import Example, UserError
from tests.data.long_prompts import Chunks

SPLITS = ("train", "validation", "test")


def written(number: int, words: int) -> str:
    """Some sentences, no word of which comes twice in the text."""
    made = (f"w{number}x{i}" for i in range(words))
    return "".join(
        f"{word}. " if i % 9 == 8 else f"{word}\n\n" if i % 50 == 49 else f"{word} " for i, word in enumerate(made)
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(written(1, 6000), encoding="utf-8")
    return path


def whole(example: Example) -> str:
    return example.instruction + "".join(example.context) + example.question + example.answer


@pytest.mark.parametrize("tokens", [128, 400, 1111])
def test_windows_lie_side_by_side(book: Path, tokens: int) -> None:
    text, spans = book.read_text(), []
    task, tokenizer = LongText(tokens=tokens, path=str(book), answer_tokens=32, holdout=0.3), Chunks()
    for split in SPLITS:
        examples = task.examples_in(tokenizer, split)
        assert len(examples) > 1
        for example in examples:
            encoded = encode(example, tokenizer)
            assert encoded.length <= tokens and tokens - encoded.length < 80
            assert 16 <= len(encoded.question) < 100 and 20 <= len(encoded.answer) <= 32
            assert text.count(whole(example)) == 1
            begin = text.index(whole(example))
            spans.append((begin, begin + len(whole(example)), split))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert [split for split, _ in itertools.groupby(split for *_, split in spans)] == list(SPLITS), "one part a split"


def test_order_and_count(book: Path) -> None:
    task = LongText(tokens=200, path=str(book), answer_tokens=20)
    every = task.examples("train")
    assert (
        task.examples("train", 3)[2]
        == every[2]
        == task.example("train", 2)
        == LongText(tokens=200, path=str(book), answer_tokens=20).example("train", 2)
    )
    assert len(task.examples("train", 3)) == 3 and len(task.examples("train", 10**6)) == len(every)
    other = LongText(tokens=200, path=str(book), answer_tokens=20, seed=1).examples("train")
    assert [e.uid for e in other] != [e.uid for e in every] and {e.uid for e in other} == {e.uid for e in every}


def test_check_compares_the_text(book: Path) -> None:
    task = LongText(tokens=200, path=str(book), answer_tokens=20)
    example, other = task.examples("test", 2)
    assert task.check(f"{example.answer.replace(' ', '  ')} and so on", example)
    assert not task.check(other.answer, example) and not task.check(example.answer[:-3], example)
    assert task.ask("text so far") == ("", "text so far") and example.support is None


def test_a_folder_and_files_of_their_own(book: Path, tmp_path: Path) -> None:
    """No window goes over the end of a file; a split with a file of its own has all of it."""
    folder = tmp_path / "books"
    folder.mkdir()
    for number in (2, 3):
        (folder / f"{number}.txt").write_text(written(number, 2000), encoding="utf-8")
    task = LongText(tokens=200, path=str(folder), test_path=str(book), answer_tokens=20)
    for example in task.examples("train"):
        assert ("w2x" in whole(example)) != ("w3x" in whole(example))
    text = "".join(whole(example) for example in task.examples("test"))
    assert "w1x0 " in text and re.search(r"w1x59\d\d", text) and "w2x" not in text
    alone = LongText(tokens=200, validation_path=str(book), answer_tokens=20)
    assert "w1x0 " in "".join(whole(example) for example in alone.examples("validation"))
    with pytest.raises(UserError, match=r"config.task.path = '': expected a text file for the train split"):
        alone.examples("train")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aB .!?\n\t\"')é", max_size=60))
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text.rstrip()
    assert all(sentence.strip() for sentence in sentences(text))


def test_sentences_end_where_they_should() -> None:
    text = 'He said "no." She left! \n\nA title\n\nThe end'
    assert sentences(text) == ['He said "no."', " She left!", " \n\nA title", "\n\nThe end"]
    assert max(len(sentence.split()) for sentence in sentences("word " * 500)) == LONGEST
    assert len(sentences("x" * 100_000)) > 10, "text without white space is cut too"


@given(st.integers(3, 50), st.floats(0.01, 0.49))
@settings(deadline=None)
def test_shares_are_the_whole(size: int, holdout: float) -> None:
    parts = [share(range(size), split, holdout) for split in SPLITS]
    assert [n for part in parts for n in part] == list(range(size))
    assert all(len(part) for part in parts[1:])


def test_words_and_sentences_that_fit_nowhere_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    long = " ".join(["unpronounceable"] * 60)
    path.write_text(f"{written(1, 400)} {long}. {'z' * 900} {written(2, 400)}", encoding="utf-8")
    task, tokenizer = LongText(tokens=100, path=str(path), answer_tokens=16, recent=8), Chunks()
    examples = task.examples_in(tokenizer, "train")
    assert any("w2x" in whole(example) for example in examples)
    assert all(encode(example, tokenizer).length <= 100 for example in examples)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "task.path = '': expected the path of a text file"),
        ({"path": "x", "holdout": 0.5}, "task.holdout = 0.5"),
        ({"path": "x", "answer_tokens": 0}, "task.answer_tokens = 0"),
        ({"path": "x", "recent": 0}, "task.recent = 0"),
        ({"path": "x", "tokens": 100}, "task.tokens = 100: expected at least 160, twice"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LongText(**fields)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"fine\nfine\n\xff\xfe")
    with pytest.raises(UserError, match=r"bad.txt:3: expected UTF-8 text"):
        read_documents(str(path), "path")
    path.write_text(" \n ")
    with pytest.raises(UserError, match=r"bad.txt:1: expected text, the file is empty"):
        read_documents(str(path), "path")
    with pytest.raises(UserError, match=r"config.task.test_path: no text in .*nowhere"):
        LongText(test_path=str(tmp_path / "nowhere")).examples("test")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: expected a text file, or a folder with \*.txt files"):
        read_documents(str(tmp_path / "folder"), "path")
    path.write_text("Short. Text. Here. Is.")
    with pytest.raises(
        UserError, match=r"config.task.tokens = 1024: the test split of .*bad.txt is shorter than a window"
    ):
        LongText(path=str(path)).examples("test")


def test_paths_of_a_config_are_absolute(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(book.parent)
    file = Path(__file__).resolve().parents[2] / "configs" / "ruler.py"
    config = load_config(f"{file}:text_512", ["--config.task.path=book.txt"])
    assert config.task.fields["path"] == str(book)
