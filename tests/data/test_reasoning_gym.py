"""reasoning-gym problems: deterministic, splits apart, shots never the question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rcp.config_file import from_dict
from rcp.data.tasks.reasoning_gym import ReasoningGym
from rcp.train.build import make_task
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
        assert all(shot.endswith("\n\n") for shot in (*example.context, example.answer))
        assert all(example.question not in shot for shot in example.context)
        assert example.group == TASK.groups[number % 2]
        assert example.support is not None and len(example.support) == 4
        assert not any("Least Common Multiple" in example.context[place] for place in example.support)
        assert TASK.check(example.answer, example) and not TASK.check(" no", example)
        assert TASK.check(example.answer + "\nQ: more\nA: 1", example)


def test_splits_differ():
    questions = {split: {e.question for e in TASK.examples(split, 30)} for split in ("train", "validation", "test")}
    assert len(questions["train"] | questions["test"]) > 55 and questions["train"] != questions["validation"]
    assert TASK.example("train", 3) != ReasoningGym(families=("chain_sum", "gcd"), seed=1).example("train", 3)


def test_shots_of_one_family_support_nothing_in_particular():
    """No shot is needed more than another, and the questions are those of the task with distractors."""
    alone = replace(TASK, shots=16, distractors=0)
    for number, example in enumerate(alone.examples("test", 4)):
        assert example.support is None and example.question == TASK.example("test", number).question


def test_options_from_a_config():
    """They are a section in a section; and one that was saved and read again has lists for tuples."""
    values = {"name": "reasoning_gym", "params": {"chain_sum": {"max_terms": 2}}}
    task = make_task(from_dict({"task": values}))
    assert isinstance(task, ReasoningGym) and task.params == values["params"]
    with pytest.raises(UserError, match=r"config.task.params.chain_sum should be a section"):
        make_task(from_dict({"task": {**values, "params": {"chain_sum": 2}}}))
    options = {"basic_arithmetic": {"max_terms": 2, "operators": ["+", "-"]}}
    task = ReasoningGym(families=("basic_arithmetic",), shots=2, params=options)
    assert task.example("test", 0) == replace(
        task, params={"basic_arithmetic": {"max_terms": 2, "operators": ("+", "-")}}
    ).example("test", 0)


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
