"""reasoning-gym problems: deterministic, splits apart, shots never the question."""

from __future__ import annotations

import pytest

from rcp.data.tasks.reasoning_gym import ReasoningGym
from rcp.types import UserError

pytest.importorskip("reasoning_gym")
TASK = ReasoningGym(
    families=("chain_sum", "gcd"),
    shots=6,
    distractor_families=("lcm",),
    distractors=2,
    params={"chain_sum": {"min_digits": 1, "max_digits": 2}},
    pool_size=50,
)


def test_prompts():
    for number, example in enumerate(TASK.examples("test", 8)):
        assert example == TASK.example("test", number)
        assert len(set(example.context)) == 6 and sum("Least Common Multiple" in shot for shot in example.context) == 2
        assert all(example.question not in shot for shot in example.context)
        assert example.group == TASK.groups[number % 2]
        assert TASK.check(example.answer, example) and not TASK.check(" no", example)
        assert TASK.check(example.answer + "\nQ: more\nA: 1", example)


def test_splits_differ():
    questions = {split: {e.question for e in TASK.examples(split, 30)} for split in ("train", "validation", "test")}
    assert len(questions["train"] | questions["test"]) > 55 and questions["train"] != questions["validation"]
    assert TASK.example("train", 3) != ReasoningGym(families=("chain_sum", "gcd"), seed=1).example("train", 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"families": ("chain_sums",)}, "no family 'chain_sums'; did you mean 'chain_sum'"),
        ({"params": {"chain_sum": {"terms": 3}}}, "refused the options of 'chain_sum'"),
        ({"families": ()}, "task.families is empty"),
        ({"distractors": 3}, "task.distractor_families is empty"),
        ({"shots": 2, "distractors": 3}, "task.distractors = 3"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        ReasoningGym(**fields).examples("test", 1)
