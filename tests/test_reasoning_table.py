"""The table of reasoning-gym families: its setting is the config's, and families are told apart by the question."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.measure import Column, Part, Row
from experiments.reasoning import METHODS, by_family, options_of, setting_of
from experiments.subjects import config_of
from rcp.data.tasks.reasoning_gym import ReasoningGym
from rcp.train.build import make_task


def test_the_references_ask_the_same_questions() -> None:
    """Four and sixteen examples, all of the question's family, before the questions that every other row answers."""
    pytest.importorskip("reasoning_gym")
    task = {key: value for key, value in setting_of(options_of(()), 16).task.items() if key != "name"}
    mixed = ReasoningGym(**task)
    others = {method.name: ReasoningGym(**{**task, **method.task}) for method in METHODS if method.task}
    assert set(others) == {"family_4", "family_16"}
    for number in range(6):
        example = mixed.example("test", number)
        assert len(example.context) == 16 and len(example.support or ()) == 8
        for name, other in others.items():
            same = other.example("test", number)
            assert (same.question, same.answer, same.uid) == (example.question, example.answer, example.uid)
            assert len(same.context) == int(name.removeprefix("family_")) and same.support is None


def test_more_candidates_and_another_split_are_settings_of_their_own() -> None:
    pytest.importorskip("reasoning_gym")
    options = options_of(["--split=validation", "--examples=2"])
    usual, wider = setting_of(options_of(()), 16), setting_of(options, 64)
    assert (usual.label, wider.label) == ("reasoning_16", "reasoning_64_validation")
    assert "validation split" in wider.heading and "split" not in usual.heading
    found = config_of(wider, METHODS[2], ["full"], 0)
    assert found.eval.split == "validation" and found.data.max_segments == 64
    example = make_task(found).example("validation", 0)
    assert len(example.context) == 64 and len(example.support or ()) == 32


def test_exact_match_by_family() -> None:
    setting = setting_of(options_of(["--examples=6", "--keep-tokens=40"]), 16)
    families = setting.task["families"]
    n, one = 2 * len(families), np.ones(2 * len(families))
    index = np.arange(n, dtype=np.float64)

    def column(right: np.ndarray) -> Column:
        return Column(index, one, right.astype(np.float64), one, one, 0.0, 0.0)

    rows = (
        Row(METHODS[0], {"40 tokens": column(index < len(families))}, (0,)),
        Row(METHODS[2], {"1": column(index % len(families) == 1)}, (0,)),
        Row(METHODS[3], {}, (), "more time"),
    )
    lines = by_family([Part(setting, rows, ("cpu",))]).splitlines()
    assert lines[0] == "Exact match by family @ 40 tokens"
    assert lines[2] == f"| method | {' | '.join(f'{family} (n = 2)' for family in families)} |"
    assert lines[4:6] == [
        f"| ours | {' | '.join(['0.500'] * len(families))} |",
        f"| full | {' | '.join(['0.000', '1.000', *['0.000'] * (len(families) - 2)])} |",
    ]
    assert "shorter" not in "".join(lines)
    few = Column(index[:3], one[:3], one[:3], one[:3], one[:3], 0.0, 0.0)
    rows = (*rows, Row(METHODS[4], {"40 tokens": few}, (0,), "as it was stored"))
    last = by_family([Part(setting, rows, ("cpu",))]).splitlines()[6]
    assert last.startswith(f"| {METHODS[4].name} | 1.000 (n = 1) | 1.000 (n = 1) | 1.000 (n = 1) |")
