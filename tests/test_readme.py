"""What the README says to run runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.lax
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_every_file_and_command_it_names_is_there() -> None:
    missing = [name for name in re.findall(r"(?:configs|notebooks|docs)/[\w./]+\w", TEXT) if not (ROOT / name).exists()]
    assert not missing
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, flags=re.MULTILINE)) <= targets

    from rcp.cli import COMMANDS

    assert set(re.findall(r"^rcp (\w+)", TEXT, flags=re.MULTILINE)) <= set(COMMANDS)
