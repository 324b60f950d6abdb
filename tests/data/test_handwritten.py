"""Our own worked examples: right, of the promised size; as a fixed prompt, and appended to what is pruned."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rcp.data import sources
from rcp.data.answers import final_answer
from rcp.data.pack import collate, encode
from rcp.data.tasks.handwritten import HANDWRITTEN
from rcp.data.tasks.word_problems import Gsm8k, Svamp, shot

from .raw_files import REAL_DIR, needs_real_files, write_tiny
from .test_pack import Bytes

SMALL = {"pool_size": 15, "validation_size": 5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(write_tiny(tmp_path / "raw")))


@pytest.mark.parametrize("problem", HANDWRITTEN, ids=lambda problem: problem.uid)
def test_every_equation_holds_and_ends_in_the_answer(problem):
    equations = re.findall(r"([\d.+\-*/() ]*[\d)]) = ([\d.]*\d)", problem.solution)
    assert equations
    for left, right in equations:
        assert eval(left) == pytest.approx(float(right)), f"{left} = {right}"
    assert final_answer(problem.solution) == problem.answer
    assert problem.solution.endswith(f"The answer is {problem.answer}.") and "\n" not in problem.solution
    last = [right for _, right in equations if float(right) == float(problem.answer)]
    assert last, "the answer comes out of an equation"
    assert 40 <= len(f"{problem.question} {problem.solution}".split()) <= 80


def test_they_differ():
    assert len(HANDWRITTEN) == len({p.question for p in HANDWRITTEN}) == len({p.answer for p in HANDWRITTEN}) == 8


@needs_real_files
def test_none_is_a_published_problem(monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(REAL_DIR))
    published = [row.question for split in ("train", "test") for row in sources.problems("gsm8k", split)]
    published += [row.question for row in sources.problems("mrd3", "train")]

    def openings(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    seen = set().union(*map(openings, published))
    assert not [p.uid for p in HANDWRITTEN if openings(p.question) & seen]


def test_a_fixed_prompt_is_the_first_of_them_in_order(folder):
    for task in (Gsm8k(pool="handwritten", shots=5, **SMALL), Svamp(pool="handwritten", shots=5)):
        for example in task.examples("test", 3):
            assert example.context == tuple(shot(worked) for worked in HANDWRITTEN[:5])
            assert example.forced == ()


def test_appended_ones_stand_last_and_are_forced_whole(folder):
    plain, task = Gsm8k(shots=4, **SMALL), Gsm8k(shots=4, append=2, **SMALL)
    for before, example in zip(plain.examples("train", 3), task.examples("train", 3), strict=True):
        assert example.context == (*before.context, *(shot(worked) for worked in HANDWRITTEN[:2]))
        assert (example.question, example.answer) == (before.question, before.answer)
        encoded = encode(example, Bytes())
        assert [mask.all() for mask in encoded.forced] == [False] * 4 + [True] * 2
        assert not any(mask.any() for mask in encoded.forced[:4])
        batch = collate([encoded], encoded.length, 6, 1)
        np.testing.assert_array_equal(batch.forced, batch.segment >= 4)
