"""Where the published files are, if anywhere, and tiny files of the same formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

REAL_DIR = Path(os.environ.get("RCP_DATA_DIR") or Path(__file__).resolve().parents[2] / "../shared/data/math")
needs_real_files = pytest.mark.skipif(
    not (REAL_DIR / "gsm8k_train.jsonl").is_file(), reason="the published word problems are not on this machine"
)


def write_tiny(folder: Path, rows: int = 40) -> Path:
    """Files named and formatted like the published ones, `rows` rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, first in (("train", 0), ("test", 1_000)):
        lines = [
            {
                "question": f"Ann has {n} pens and buys {n + 1} more. How many pens has she in case {n}?",
                "answer": f"Has {n}+{n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} pens\nDone.\n#### {2 * n + 1:,}",
            }
            for n in range(first, first + rows)
        ]
        (folder / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    svamp = [{"Body": f"Tom had {n} $", "Question": "How many are left?", "Answer": float(n)} for n in range(rows)]
    (folder / "svamp.json").write_text(json.dumps(svamp))
    addsub = [{"sQuestion": f"Joan found {n} shells . How many ? ", "lSolutions": [str(n)]} for n in range(rows)]
    (folder / "addsub.json").write_text(json.dumps(addsub, indent=1))
    for name in ("multiarith", "singleeq"):
        made = [
            {"sQuestion": f"Ann has {n} pens and {n}.5 more . How many ?", "lSolutions": [2 * n + 0.5]}
            for n in range(rows)
        ]
        (folder / f"{name}.json").write_text(json.dumps(made))
    mrd3 = [
        {
            "instruction": f"A box weighs {n} kg. How much do two weigh? \n ",
            "input": "",
            "output": f" Two weigh 2 x {n} = {2 * n} kg. The answer is {2 * n:,}.",
            "answer": str(2 * n).split(",")[0],
            "difficulty": str(1 + n % 4),
            "steps": "2",
        }
        for n in range(rows)
    ]
    (folder / "mrd3_revise_difficulty.json").write_text(json.dumps(mrd3))
    return folder
