"""The chain task: the support alone gives the answer; every statement has the same number of tokens."""

from __future__ import annotations

import pytest

from rcp.data.tasks.chain import Chain
from rcp.types import Example, UserError


def solve(example: Example, segments: list[int], modulus: int) -> int | None:
    """The value of the asked variable, or None where the statements do not give it."""
    defined: dict[str, tuple[str, int]] = {}
    for s in segments:
        name, equals, source, *rest = example.context[s].split()
        assert equals == "=" and rest[-1] == ";" and name not in defined
        defined[name] = (source, int(rest[1]) if len(rest) == 3 else 0)
    name, total = example.question.split()[0], 0
    for _ in range(len(segments) + 1):
        if name.isdigit():
            return (total + int(name)) % modulus
        if name not in defined:
            return None
        name, add = defined[name]
        total += add
    raise AssertionError("a circle")


@pytest.mark.parametrize("operations", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_support_gives_the_answer_and_nothing_less_does(operations, shuffled):
    task = Chain(operations=operations, shuffled=shuffled, modulus=7)
    tokenizer = task.tokenizer()
    for split in ("train", "test"):
        for example in task.examples(split, 150):
            assert example.support is not None
            everything = list(range(len(example.context)))
            assert solve(example, everything, 7) == solve(example, list(example.support), 7) == int(example.answer)
            for needed in example.support:
                assert solve(example, [s for s in everything if s != needed], 7) is None
            assert {len(tokenizer.encode(segment)) for segment in example.context} == {6 if operations else 4}
            assert len(tokenizer.encode(example.answer)) == 1
            assert example.group == f"needs {len(example.support)}" and example.group in task.groups


def test_unshuffled_chains_define_before_use():
    for example in Chain(shuffled=False).examples("test", 100):
        seen: set[str] = set()
        for segment in example.context:
            name, _, source, _ = segment.split()
            assert source.isdigit() or source in seen
            seen.add(name)


def test_lengths_of_training_and_test():
    task = Chain(segments=(2, 6), test_segments=(20, 24), needed=(1, 3))
    assert {len(e.context) for e in task.examples("train", 300)} == {2, 3, 4, 5, 6}
    assert {len(e.context) for e in task.examples("test", 300)} == {20, 21, 22, 23, 24}
    assert {len(e.support or ()) for e in task.examples("test", 300)} == {1, 2, 3}


def test_answers_are_near_uniform():
    answers = [int(e.answer) for e in Chain().examples("train", 2000)]
    assert all(abs(answers.count(n) / 2000 - Chain().chance) < 0.03 for n in range(10))


def test_deterministic_random_access():
    assert Chain(seed=2).examples("train", 9)[5] == Chain(seed=2).example("train", 5)
    assert Chain(seed=2).example("train", 5) != Chain(seed=3).example("train", 5)


def test_check_looks_at_the_first_symbol():
    task = Chain()
    example = task.example("test", 0)
    assert task.check(example.answer + " v1 =", example)
    assert not task.check("", example) and not task.check(" v1" + example.answer, example)


def test_trace_spells_out_the_way_to_the_value():
    """Each symbol of the answer is what the statement of the one before it says; only the prompts' ends differ."""
    plain, traced = Chain(segments=(5, 9), needed=(1, 4)), Chain(segments=(5, 9), needed=(1, 4), trace=True)
    for index in range(50):
        example = traced.example("train", index)
        says = dict(part.strip(" ;").split(" = ") for part in example.context)
        asked = example.question.split()[-1]
        for symbol in example.answer.split():
            assert says[asked] == symbol
            asked = symbol
        assert asked.isdigit() and len(example.answer.split()) == len(example.support or ())
        same = plain.example("train", index)
        assert same.context == example.context and same.answer.split() == example.answer.split()[-1:]
        assert traced.check(example.answer, example) and not traced.check(" v0" + example.answer, example)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variables": 10}, "task.variables"),
        ({"segments": (4, 2)}, "task.segments"),
        ({"needed": (1, 9)}, "task.needed"),
        ({"segments": (2, 6), "needed": (3, 3)}, "task.needed.*more than the shortest context has"),
        ({"test_segments": (2, 24), "needed": (3, 3), "segments": (3, 6)}, "task.needed.*more than the shortest"),
        ({"modulus": 11}, "task.modulus"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Chain(**fields)
