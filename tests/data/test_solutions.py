"""Worked problems as text: no problem in two splits, none of the test file; characters as tokens."""

from __future__ import annotations

import pytest

from rcp.data.pack import encode
from rcp.data.tasks.solutions import Solutions
from rcp.data.tokenizer import CharacterTokenizer
from rcp.types import UserError
from tests.data.raw_files import write_tiny


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(write_tiny(tmp_path, rows=60)))


def test_splits_are_of_problems_and_the_test_file_is_no_part_of_them():
    tokenizer, seen = CharacterTokenizer(), {}
    for split in ("train", "validation", "test"):
        task = Solutions(tokens=300, answer_tokens=40, holdout=0.2, characters=True)
        examples = task.examples_in(tokenizer, split)
        assert len(examples) > 2
        texts = ["".join(e.context) + e.question + e.answer for e in examples]
        assert all(encode(e, tokenizer).length <= 300 for e in examples)
        seen[split] = {word for text in texts for word in text.split() if word.rstrip("?.").isdigit()}
        assert any("The answer is" in text for text in texts)
    cases = {split: {word for word in words if word.endswith("?")} for split, words in seen.items()}  # "case N?"
    assert cases["train"] and cases["validation"] and cases["test"]
    assert not cases["train"] & cases["validation"] and not (cases["train"] | cases["validation"]) & cases["test"]
    assert all(int(word.rstrip("?")) < 60 for words in cases.values() for word in words)


def test_no_problem_is_in_the_test_split_of_one_seed_and_trained_on_under_another():
    tokenizer = CharacterTokenizer()

    def cases(split, seed) -> set[str]:
        task = Solutions(tokens=300, answer_tokens=40, holdout=0.2, characters=True, seed=seed)
        texts = ["".join(e.context) + e.question + e.answer for e in task.examples_in(tokenizer, split)]
        return {word for text in texts for word in text.split() if word.rstrip("?").isdigit() and word.endswith("?")}

    assert cases("test", 0) and not cases("test", 0) & cases("train", 17)


def test_an_unknown_data_set_is_named():
    with pytest.raises(UserError, match=r"config.task.dataset = 'gsm8k.svamp': expected some of gsm8k, mrd3, joined"):
        Solutions(dataset="gsm8k+svamp")


def test_characters_come_back():
    tokenizer = CharacterTokenizer()
    text = "Q: 3 + 4 = ?\nA: ~7~ {x}|"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("5 €")) == "5 \ufffd"
    assert len(set(tokenizer.symbols)) == tokenizer.vocab_size
