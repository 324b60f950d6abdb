"""Who may import whom. Reads the source, imports nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BASE = {"types", "sampling"}
LOWER = BASE | {"nn", "objectives", "policies", "eviction", "data", "pretrained"}
CONFIG = {"config", "config_eviction", "config_dynamic", "config_check", "config_fill", "config_file", "config_saved"}
TRAIN = LOWER | CONFIG
UPPER = TRAIN | {"train", "infer", "evaluate", "endpoint"}
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "sampling": set(),
    "config_eviction": set(),
    "config_dynamic": set(),
    "config": {"types", "config_eviction", "config_dynamic"},
    "config_check": {"types", "config"},
    "config_fill": {"types", "config", "config_check"},
    "config_file": {"types", "config", "config_check", "config_fill"},
    "config_saved": {"types"} | CONFIG,
    "endpoint": {"types", "config"},
    "nn": BASE,
    "objectives": BASE,
    "data": {"types"},
    "pretrained": BASE | {"nn"},
    "policies": BASE | {"nn"},
    "eviction": BASE | {"nn"},
    "train": TRAIN | {"endpoint"},
    "infer": TRAIN | {"train"},
    "evaluate": TRAIN | {"train", "infer", "endpoint"},
    "cost": {"types", "nn", "pretrained", "evaluate"} | CONFIG,
    "cli": UPPER | {"doctor", "cost"},
    "doctor": UPPER,
    "__main__": {"cli"},
}

# Libraries that only some rooms know. A room is the first name under rcp, a file is named by its path.
ONLY_IN = {
    "orbax": {"train/checkpoint.py"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "gguf": {"pretrained"},
    "safetensors": {"pretrained"},
    "rank_bm25": {"policies", "data"},
    "matplotlib": {"evaluate"},
    "ml_collections": set(),  # configs/ alone; `rcp.config_file` calls its `to_dict`
    "torch": set(),
    "transformers": set(),
    "tensorflow": set(),
}
NEVER = {
    "data": {"jax", "jaxlib", "flax", "optax"},
    "sampling": {"flax", "ml_collections", "optax"},
    "objectives": {"flax", "ml_collections"},
    "eviction": {"flax", "ml_collections", "optax"},
    "configs": {"rcp", "jax", "flax"},
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module name) of every import in a file, those inside functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            if node.module == "rcp":
                yield from ((node.lineno, f"rcp.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "rcp").parts[0].removesuffix(".py")


def test_every_arrow_points_the_right_way() -> None:
    wrong = []
    for path in files("rcp"):
        room = room_of(path)
        if room == "__init__":
            continue
        assert room in MAY_IMPORT, f"{path.relative_to(ROOT)}: a new room; say in this test what it may import"
        for line, name in imports(path):
            if name == "rcp" or not name.startswith("rcp."):
                continue
            target = name.split(".")[1]
            if target.startswith("__") or target == room:
                continue
            if target not in MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_known_only_in_its_room(library: str) -> None:
    wrong = []
    for path in files("rcp"):
        relative = path.relative_to(ROOT / "rcp").as_posix()
        if {relative, room_of(path)} & ONLY_IN[library]:
            continue
        wrong += [f"rcp/{relative}:{n}: {name}" for n, name in imports(path) if name.split(".")[0] == library]
    assert not wrong, f"{library} belongs in {sorted(ONLY_IN[library])}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(NEVER))
def test_a_room_stays_free_of_what_it_must_not_know(room: str) -> None:
    folder = room if room == "configs" else f"rcp/{room}"
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files(folder)
        for line, name in imports(path)
        if name.split(".")[0] in NEVER[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_tests_or_the_experiments() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files("rcp")
        for line, name in imports(path)
        if name.split(".")[0] in {"tests", "configs"}
        or (name.split(".")[0] == "experiments" and room_of(path) != "cli")
    ]
    assert not wrong, "\n".join(wrong)
