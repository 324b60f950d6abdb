"""A published model in miniature and a file of questions for it."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("Ann", "Bob", "Cy", "Di")


def tiny_model(folder: Path) -> Path:
    """A two-layer Llama with a token a character (its 96 symbols), in the format of the hub."""
    shutil.copytree(ROOT / "tests" / "references" / "llama3-tied", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    symbols = ["<unk>", "<s>", "</s>", " ", "\n", *string.ascii_letters, *string.digits, *".:?'"]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def write_rows(path: Path) -> Path:
    rows = [
        {
            "question": f"Where is {name}?",
            "answer": f"City {i}",
            "context": f"{name} is in City {i}.\n\nIt is {i}.\n\nNo.",
        }
        for i, name in enumerate(NAMES * 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def smaller(model: Path, rows: Path) -> list[str]:
    """Flags that make of configs/jsonl.py a run of two steps with this model on these rows."""
    keys = {
        "task.path": rows,
        "model.name": model,
        "model.dtype": "float32",
        "data.batch_size": 2,
        "data.lengths": "[96]",
        "data.max_segments": 3,
        "data.max_answer": 12,
        "policy.samples": 2,
        "policy.updates": 1,
        "scorer.width": 8,
        "scorer.depth": 1,
        "train.steps": 2,
        "parallel.devices": 1,
    }
    return [f"--config.{key}={value}" for key, value in keys.items()]
