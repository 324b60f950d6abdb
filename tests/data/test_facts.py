"""The facts task: one right answer, reachable from the named sentences and from nothing less; unseen words in test."""

from __future__ import annotations

import re

import pytest

from rcp.data.tasks import lexicon
from rcp.data.tasks.facts import ATTRIBUTES, GROUPS, Facts
from rcp.types import Example, UserError

COUNT = 150


def statements(sentences: list[str]) -> tuple[dict[tuple[str, str], set[str]], dict[tuple[str, str], set[str]]]:
    """What sentences say: (person, kind) -> values and (person, relation) -> people."""
    attributes: dict[tuple[str, str], set[str]] = {}
    relations: dict[tuple[str, str], set[str]] = {}
    relation = re.compile(rf"(\w+)'s ({'|'.join(lexicon.RELATIONS)}) is (\w+)\.")
    for sentence in sentences:
        if found := relation.fullmatch(sentence):
            relations.setdefault((found[1], found[2]), set()).add(found[3])
            continue
        kinds = []
        for kind, attribute in ATTRIBUTES.items():
            pattern = re.escape(attribute.statement).replace(r"\{who\}", r"(\w+)").replace(r"\{v\}", "(.+)")
            found = re.fullmatch(pattern, sentence)
            if found and found[2] in attribute.values:
                attributes.setdefault((found[1], kind), set()).add(found[2])
                kinds.append(kind)
        assert len(kinds) == 1, sentence
    return attributes, relations


def solve(example: Example, segments: list[int]) -> set[str]:
    """Every answer that the sentences with these numbers allow."""
    attributes, relations = statements([example.context[s].strip() for s in segments])
    question = example.question.split("\n")[1].removeprefix("Question: ")
    person = rf"(\w+)(?:'s ({'|'.join(lexicon.RELATIONS)}))?"
    answers: set[str] = set()
    if found := re.fullmatch(r"Who is (\w+)'s (\w+)\?", question):
        return {f" {name}." for name in relations.get((found[1], found[2]), ())}
    for kind, attribute in ATTRIBUTES.items():
        for form, _ in attribute.questions:
            found = re.fullmatch(re.escape(form).replace(r"\{who\}", person), question)
            if not found:
                continue
            people = relations.get((found[1], found[2]), set()) if found[2] else {found[1]}
            for who in people:
                answers |= {f" {value}." for value in attributes.get((who, kind), ())}
    return answers


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_support_answers_the_question_and_nothing_less_does(split):
    for example in Facts(seed=1).examples(split, COUNT):
        assert example.support is not None
        everything = list(range(len(example.context)))
        assert solve(example, everything) == {example.answer}, example
        assert solve(example, list(example.support)) == {example.answer}
        for needed in example.support:
            assert solve(example, [s for s in everything if s != needed]) == set()


def test_segments_hops_and_groups():
    examples = Facts(segments=16).examples("train", COUNT)
    assert {len(e.context) for e in examples} == {16}
    assert {len(set(e.context)) for e in examples} == {16}
    for example in examples:
        assert example.support is not None and example.group == GROUPS[len(example.support)]
        assert all(segment.startswith(" ") and segment.endswith(".") for segment in example.context)
        assert example.answer.startswith(" ") and example.answer.endswith(".")
    two = sum(e.group == "two-hop" for e in examples)
    assert 0.35 < two / COUNT < 0.65
    assert {e.group for e in Facts(hops=(2,)).examples("train", 20)} == {"two-hop"}
    assert [len(e.context) for e in Facts(segments=64).examples("test", 5)] == [64] * 5
    assert [len(e.context) for e in Facts(segments=2).examples("test", 5)] == [2] * 5


def test_second_sentence_of_two_hops_shares_no_word_with_the_question():
    for split in ("train", "test"):
        for example in Facts(hops=(2,)).examples(split, COUNT):
            assert example.support is not None
            question = set(re.findall(r"\w+", example.question.lower()))
            second = set(re.findall(r"\w+", example.context[example.support[1]].lower()))
            assert not question & second, (example.question, example.context[example.support[1]])


def test_answer_type_does_not_give_the_sentence_away():
    """Several sentences end in a value of the answer's kind; several links end in someone whose value is told."""
    for example in Facts().examples("test", COUNT):
        attributes, relations = statements([segment.strip() for segment in example.context])
        assert example.support is not None
        asked, rivals = statements([example.context[example.support[-1]].strip()])
        if asked:
            (_, kind), _ = next(iter(asked.items()))
            assert sum(k == kind for _, k in attributes) >= 4
            told = [p for people in relations.values() for p in people if (p, kind) in attributes]
            assert len(told) >= 3
        else:
            (_, relation), _ = next(iter(rivals.items()))
            assert sum(r == relation for _, r in relations) >= 3


def test_support_is_spread_over_all_places():
    places = [s for e in Facts().examples("train", 600) for s in e.support or ()]
    counts = [places.count(s) for s in range(16)]
    assert min(counts) > len(places) / 16 * 0.5 and max(counts) < len(places) / 16 * 1.6


def test_names_and_values_of_training_never_occur_in_test():
    def words(split: str) -> tuple[set[str], set[tuple[str, str]]]:
        names, values = set(), set()
        for example in Facts().examples(split, COUNT):
            attributes, relations = statements([segment.strip() for segment in example.context])
            names |= (
                {a for a, _ in attributes} | {a for a, _ in relations} | {b for bs in relations.values() for b in bs}
            )
            values |= {(kind, value) for (_, kind), vs in attributes.items() for value in vs}
        return names, values

    (names, values), (test_names, test_values) = words("train"), words("test")
    assert names and test_names and not names & test_names
    assert values and test_values and not values & test_values
    for attribute in ATTRIBUTES.values():
        assert not set(lexicon.pool(attribute.values, True)) & set(lexicon.pool(attribute.values, False))
        assert len(set(attribute.values)) == len(attribute.values) >= 30


def test_example_is_a_function_of_seed_split_and_number():
    task = Facts(seed=3)
    assert task.examples("train", 10)[7] == Facts(seed=3).examples("train", 500)[7] == task.example("train", 7)
    assert task.example("train", 7) != Facts(seed=4).example("train", 7)
    assert task.example("validation", 7) != task.example("test", 7)
    assert len(task.examples("train")) == task.train_size and len(task.examples("test")) == task.eval_size
    assert task.examples("test", 3)[-1] == task.examples("test", 3)[2]
    with pytest.raises(IndexError):
        task.examples("test", 3)[3]


def test_check():
    task = Facts()
    example = task.example("test", 0)
    assert task.check(example.answer, example)
    assert task.check(example.answer + " More text. And more", example)
    assert not task.check(" nothing.", example)
    assert not task.check("", example)


@pytest.mark.parametrize(("fields", "message"), [({"segments": 1}, "task.segments"), ({"hops": (3,)}, "task.hops")])
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Facts(**fields)


def test_bad_split():
    with pytest.raises(UserError, match=r"expected one of train, validation, test"):
        Facts().examples("dev", 1)  # type: ignore[arg-type]
