"""What all tasks of generated long prompts promise: the length, random access, splits apart, a fair check."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.config_file import from_dict
from rcp.data.pack import encode
from rcp.data.pipeline import EncodedTask
from rcp.data.tasks import TASKS, Task
from rcp.data.tasks import haystack_words as words
from rcp.data.tasks.common_words import CommonWords
from rcp.data.tasks.documents import Documents
from rcp.data.tasks.generated import Generated, insert, named, numbers, pieces, take
from rcp.data.tasks.needle import Needle, Passkey
from rcp.data.tasks.tracking import Tracking
from rcp.train.build import make_task
from rcp.types import UserError
from tests.data.long_prompts import MADE, Chunks

SPLITS = ("train", "validation", "test")
COUNT = 25
tasks = pytest.mark.parametrize("name", MADE)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(MADE)), st.integers(128, 8192), st.integers(0, 1 << 16), st.sampled_from(SPLITS))
def test_no_prompt_is_longer_than_asked_and_hardly_shorter(name: str, tokens: int, index: int, split) -> None:
    """Counted as batches count them, each piece apart. What the question needs has to fit: else it says so."""
    task, tokenizer = MADE[name](tokens=tokens), Chunks()
    try:
        example = encode(task.examples_in(tokenizer, split, index + 1)[index], tokenizer)
    except UserError as error:
        assert f"config.task.tokens = {tokens}: expected at least the" in str(error) and tokens < 640
        return
    assert example.length <= tokens
    assert tokens - example.length < max(len(segment) for segment in example.context)


@tasks
def test_the_room_is_used(name: str) -> None:
    """What is left is less than a short sentence, or than the documents or needles that the whole text consists of."""
    task, tokenizer = MADE[name](tokens=1000), Chunks()
    left = [1000 - encode(example, tokenizer).length for example in task.examples_in(tokenizer, "train", 10)]
    assert min(left) >= 0 and max(left) <= {"documents": 130, "needles": 25, "words": 3}.get(name, 14)


@tasks
def test_an_example_is_a_function_of_seed_split_and_number(name: str) -> None:
    task, tokenizer = MADE[name](tokens=700, seed=3), Chunks()
    assert (
        task.examples_in(tokenizer, "train", 9)[7] == MADE[name](tokens=700, seed=3).examples_in(Chunks(), "train")[7]
    )
    assert task.examples("test", 3)[1] == task.example("test", 1) == task.examples("test")[1]
    assert task.example("train", 1) != replace(task, seed=4).example("train", 1)
    assert len(task.examples("train")) == task.train_size and len(task.examples_in(tokenizer, "test")) == task.eval_size
    assert len({example.context for example in task.examples("train", COUNT)}) == COUNT
    with pytest.raises(UserError, match=r"expected one of train, validation, test"):
        task.examples("dev", 1)  # type: ignore[arg-type]


@tasks
def test_splits_share_no_question_and_no_answer(name: str) -> None:
    task = MADE[name](tokens=700)
    questions, answers = {}, {}
    for split in SPLITS:
        examples = task.examples(split, 60)
        questions[split] = {example.question for example in examples}
        answers[split] = {part for example in examples for part in (task.answer_key(example.answer) or "").split(", ")}
        assert answers[split]
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not answers[a] & answers[b]
        assert name in ("passkey", "words") or not questions[a] & questions[b]


@tasks
def test_check_takes_the_gold_answer_and_no_other(name: str) -> None:
    task = MADE[name](tokens=700)
    for index, example in enumerate(task.examples("test", COUNT)):
        assert example.answer.startswith(" ") and example.answer.endswith(".") and example.group in task.groups
        assert task.check(example.answer, example)
        assert task.check(f"{example.answer} And more.\nQuestion: 7", example)
        parts = example.answer[1:-1].replace(" and ", ", ").split(", ")
        assert task.check(f"{', '.join(reversed(parts))}\n", example)
        if len(parts) > 1:
            assert not task.check(f" {parts[0]}.", example)
        assert not task.check(f"{example.answer[:-1]} and others.", example)
        assert not task.check("", example) and not task.check(" nothing.", example) and not task.check(".", example)
        other = next(other for other in task.examples("train", 40) if other.answer != example.answer)
        assert not task.check(other.answer, example), index


@tasks
def test_it_is_a_task_by_name_and_its_segments_are_written_as_its_own(name: str) -> None:
    task = MADE[name](tokens=700)
    assert isinstance(task, Task) and type(task) in TASKS.values() and task.tokenizer() is None
    example = task.example("train", 0)
    instruction, question = task.ask(" Why? ")
    assert instruction == example.instruction and question == "\nQuestion: Why?\nAnswer:"
    assert all(task.segment(segment) == segment for segment in example.context)


def test_batches_are_measured_with_the_readers_tokenizer() -> None:
    tokenizer = Chunks()
    encoded = EncodedTask(Needle(tokens=300), tokenizer, "test", 4, lengths=(300,), max_segments=64)
    assert all(280 <= encoded[i].length <= 300 for i in range(4))
    assert encode(Needle(tokens=300).example("test", 0), tokenizer).length > 300, "by words it has more of these tokens"


def test_filler_has_no_word_of_a_key_and_no_digit() -> None:
    text = " ".join([*words.TEMPLATES, *words.REPEATED, *(phrase for pool in words.SLOTS.values() for phrase in pool)])
    assert not re.search(r"\d", text) and not set(re.findall(r"\w+", text.lower())) & set(words.NOUNS)
    for pool in (words.NOUNS, words.ADJECTIVES, words.SURNAMES, words.INSTRUMENTS, *words.SLOTS.values()):
        assert len(set(pool)) == len(pool) and all(text and "  " not in text and "\n" not in text for text in pool)
    contexts = [Needle(tokens=2000).example("train", i).context for i in range(4)]
    sentences = [sentence for context in contexts for sentence in context]
    assert len(set(sentences)) > 0.97 * len(sentences), "hardly a sentence comes twice"


def test_pieces_of_a_context() -> None:
    assert pieces("The lake, 42.") == 6
    assert take(["aa", "bbbbb", "c", "d"], 4, len) == ["aa", "c", "d"]
    assert take(iter(lambda: "aaa", ""), 7, len) == ["aaa", "aaa"], "endless filler ends"
    assert insert((2, 0), ("x", "y"), ("a", "b")) == ("y", "a", "x", "b")
    assert named(["a"]) == " a." and named(["a", "b"]) == " a and b." and named(["a", "b", "c"]) == " a, b and c."


@pytest.mark.parametrize("digits", [2, 3, 5, 9])
def test_numbers_are_of_their_split(digits: int) -> None:
    import numpy as np

    found = {split: numbers(np.random.default_rng(0), split, digits, 29) for split in SPLITS}
    assert all(len(set(own)) == 29 and {len(number) for number in own} == {digits} for own in found.values())
    assert len({number for own in found.values() for number in own}) == 87
    with pytest.raises(UserError, match=r"config.task.digits = 2: expected more, 31 different numbers are needed"):
        numbers(np.random.default_rng(0), "test", 2, 31)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (Needle, {"tokens": 0}, "task.tokens = 0: expected more than 0"),
        (Needle, {"digits": 1}, "task.digits = 1: expected 2 to 9"),
        (Needle, {"keys": 1, "queries": 2}, r"task.keys = 1: expected 0, or config.task.queries = 2 to 64"),
        (Needle, {"keys": 65}, "task.keys = 65"),
        (Needle, {"values": 0}, "task.values = 0: expected 1 to 64"),
        (Needle, {"depth": 1.5}, "task.depth = 1.5: expected 0 to 1, or none"),
        (Passkey, {"haystack": "essays"}, "task.haystack = 'essays': expected sentences or repeated"),
        (Tracking, {"hops": ()}, "task.hops"),
        (Tracking, {"chains": 80}, r"task.chains = 80: expected 1 to 66, for which there are variables"),
        (Tracking, {"asks": "names"}, "task.asks = 'names': expected value or variables"),
        (CommonWords, {"times": 4}, r"task.times = 4: expected more than config.task.other_times = 3 \+ 1"),
        (CommonWords, {"common": 0}, "task.common = 0"),
        (Documents, {"hops": (3,)}, "task.hops"),
    ],
)
def test_bad_fields(task: type[Generated], fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**fields)


def test_what_cannot_be_made_is_said_when_it_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"config.task.tokens = 30: expected at least the \d+ that a question"):
        Needle(tokens=30).example("train", 0)
    with pytest.raises(UserError, match=r"config.task.times = 6: expected more than \d+, the times that other words"):
        CommonWords(tokens=8192, times=6).example("train", 0)
    with pytest.raises(UserError, match=r"config.task.digits = 2: expected more"):
        Needle(tokens=2000, keys=0, digits=2).example("train", 0)


def test_fields_from_a_config() -> None:
    values = {"name": "tracking", "tokens": 2048, "hops": [1, 2], "haystack": "repeated"}
    assert make_task(from_dict({"task": values})) == Tracking(tokens=2048, hops=(1, 2), haystack="repeated")
    with pytest.raises(UserError, match=r"config.task.haystack should be one of sentences, repeated, not 'essay'"):
        make_task(from_dict({"task": {**values, "haystack": "essay"}}))
    assert make_task(from_dict({"task": {"name": "passkey", "depth": None}})) == Passkey()
