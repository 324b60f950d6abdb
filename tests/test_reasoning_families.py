"""The survey of reasoning-gym families, on a model in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import reasoning_families
from experiments.reasoning_families import OPTIONS, Survey, main, table
from rcp.data.tasks.reasoning_gym import ReasoningGym
from tests.evaluate.test_own_data import tiny_model

pytestmark = pytest.mark.lax


def test_a_row_for_every_family_that_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    model, output = tiny_model(tmp_path / "model"), tmp_path / "table.md"
    flags = [
        "--shots=0,2",
        "--lengths=96,256",
        "--questions=3",
        f"--model={model}",
        "--dtype=float32",
        f"--output={output}",
    ]
    assert main(["--families=number_sequence,number_sequences,products", *flags]) == 0
    text = capsys.readouterr()
    assert "number_sequences: left out, config.task.families: reasoning-gym has no family" in text.err
    assert "products: left out, reasoning_gym/products/train/" in text.err and "the limit is 256" in text.err
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| exact match, n = 3 | tokens a shot | 0 shots | 2 shots |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| number_sequence"]
    assert main(["--families=nothing", *flags]) == 2


def test_more_shots_are_read_after_each_other() -> None:
    """The best family comes first, and a family's numbers stand in the order of its shots."""
    rows = [Survey("a", 20.4, (0.0, 0.25), (3.0, 1.0)), Survey("b", 9.6, (0.1, 0.5), (2.0, 0.125))]
    assert table(rows, (0, 4), 8).splitlines()[2:] == [
        "| b | 10 | 0.10 | 0.50 | 2.00 / 0.12 |",
        "| a | 20 | 0.00 | 0.25 | 3.00 / 1.00 |",
    ]


@pytest.mark.parametrize("family", OPTIONS)
def test_options_leave_enough_different_problems(family: str) -> None:
    """Sixteen shots and a question that are all different, in every family of the survey."""
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym(families=(family,), shots=16, params=OPTIONS, seed=reasoning_families.SEED)
    example = task.examples("train", 1)[0]
    assert len(set(example.context)) == 16 and all(example.question not in shot for shot in example.context)
