"""What experiments have measured: kept at once, read again, and of several trainings the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cell_lines import CellLines, newest
from rcp.types import UserError


def test_cells_are_kept_and_found_again(tmp_path: Path) -> None:
    lines = CellLines(tmp_path / "cells.jsonl")
    lines.add({"method": "a", "size": 1}, {"nll": [1.5]})
    assert {"method": "a", "size": 1} in lines and {"method": "a", "size": 2} not in lines
    assert CellLines(tmp_path / "cells.jsonl").cells == lines.cells


def test_a_line_that_is_not_whole_is_dropped_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cells.jsonl"
    CellLines(path).add({"size": 1}, {"nll": [1.5]})
    whole = path.read_text()
    path.write_text(whole + '{"identity": {"size": 2}, "nl')
    again = CellLines(path)
    assert [cell["identity"] for cell in again.cells] == [{"size": 1}]
    assert "its last line is not whole and is measured anew" in capsys.readouterr().err
    again.add({"size": 2}, {"nll": [2.5]})
    assert len(CellLines(path).cells) == 2
    path.write_text('{"identity"')
    assert CellLines(path).cells == [] and path.read_text() == ""


@pytest.mark.parametrize(
    ("damaged", "why"),
    [(b'{"identity": {"si', "not JSON"), (b"\xff\xfe", "not JSON"), (b"", "not JSON")]
    + [(b'{"nll": [1.5]}', "no cell with an identity"), (b"[1, 2]", "no cell with an identity")],
)
def test_any_other_line_that_is_damaged_is_named_and_nothing_is_written(
    tmp_path: Path, damaged: bytes, why: str
) -> None:
    path = tmp_path / "cells.jsonl"
    CellLines(path).add({"size": 1}, {"nll": [1.5]})
    whole = path.read_bytes()
    path.write_bytes(whole + damaged + b"\n" + whole)
    with pytest.raises(UserError, match=rf"cells.jsonl, line 2: {why}.*; remove this line to have it measured anew"):
        CellLines(path)
    assert path.read_bytes() == whole + damaged + b"\n" + whole


def test_of_what_was_measured_twice_the_last_is_taken() -> None:
    first = {"identity": {"size": 1, "run": "old"}, "nll": 3.0}
    other = {"identity": {"size": 2, "run": "old"}, "nll": 2.0}
    last = {"identity": {"size": 1, "run": "new"}, "nll": 1.0}
    assert newest([first, other, last], "run") == [other, last]
    assert newest([first, other, last]) == [first, other, last]
