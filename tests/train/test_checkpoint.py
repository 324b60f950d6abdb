"""What is saved comes back bit for bit; damaged and foreign checkpoints are recognised."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcp.train.checkpoint import Checkpoints
from rcp.train.state import TrainState, new_state
from rcp.types import UserError


def make_state(step: int = 0, width: int = 7) -> TrainState:
    params = {
        "pruner": {"w": jnp.full((width, 3), 0.1 + step), "none": jnp.zeros((0, 3))},
        "lora": [jnp.ones((2,), jnp.bfloat16), jnp.arange(4, dtype=jnp.int8)],
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    state = new_state(3, params, optimizer.init(params), {"baseline": jnp.float32(0.5)})
    return jax.tree.map(np.asarray, state._replace(step=jnp.int32(step)))


def saved(folder: Path, steps=(5, 10, 15), keep: int = 5) -> None:
    checkpoints = Checkpoints(folder, fingerprint="abc", keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"epoch": 1, "next": step})
    checkpoints.close()


def damage(folder: Path, how: str) -> None:
    """Breaks the largest array file of a checkpoint, or its description."""
    files = [path for path in (folder / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    if how == "truncated":
        for path in files:
            os.truncate(path, path.stat().st_size // 2)
    elif how == "missing":
        for path in files:
            path.unlink()
    elif how == "meta":
        (folder / "meta" / "metadata").write_text('{"fingerpr')
    else:
        for path in files:
            path.write_bytes(bytes(b ^ 0xFF for b in path.read_bytes()))


def test_everything_comes_back_bit_for_bit_and_the_oldest_go(tmp_path):
    saved(tmp_path, keep=2)
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    found = checkpoints.restore(make_state())
    checkpoints.close()
    assert found is not None
    assert (found.step, found.pipeline) == (15, {"epoch": 1, "next": 15})
    before = make_state(15)
    assert jax.tree.structure(found.state) == jax.tree.structure(before)
    for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(before), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "15"]


def test_what_a_killed_process_had_begun_is_gone_once_the_folder_is_open(tmp_path):
    """A run that goes on opens its folder twice: to restore, and to save. The second meets no removal under way."""
    saved(tmp_path, steps=(5,))
    for n in range(2000):
        part = tmp_path / "10.orbax-checkpoint-tmp" / str(n)
        part.mkdir(parents=True)
        (part / "d").touch()
    Checkpoints(tmp_path, fingerprint="abc").close()
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    saved(tmp_path, steps=(10,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    assert checkpoints.restore(make_state()) is None
    checkpoints.close()


@pytest.mark.parametrize("how", ["truncated", "missing", "meta", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, how):
    saved(tmp_path)
    damage(tmp_path / "15", how)
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    with pytest.warns(UserWarning, match=r"15 cannot be read"):
        found = checkpoints.restore(make_state())
    assert found is not None
    assert found.step == 10
    np.testing.assert_array_equal(found.state.params["pruner"]["w"], make_state(10).params["pruner"]["w"])
    checkpoints.save(15, make_state(15), {})  # the run comes by there again
    checkpoints.close()
    again = Checkpoints(tmp_path, fingerprint="abc")
    restored = again.restore(make_state())
    again.close()
    assert restored is not None
    assert restored.step == 15
    assert (tmp_path / "broken-15").exists()


def test_values_changed_behind_an_intact_file_are_noticed(tmp_path):
    """The checksum, where every layer below is content."""
    import json

    saved(tmp_path, steps=(5, 10))
    path = tmp_path / "10" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["arrays"]["params.pruner.w"][2] ^= 1
    path.write_text(json.dumps(meta))
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    with pytest.warns(UserWarning, match="params.pruner.w do not match their checksum"):
        found = checkpoints.restore(make_state())
    checkpoints.close()
    assert found is not None
    assert found.step == 5


def test_reading_only_touches_nothing(tmp_path):
    saved(tmp_path)
    damage(tmp_path / "15", "truncated")
    before = sorted(tmp_path.iterdir())
    checkpoints = Checkpoints(tmp_path, fingerprint="abc", writable=False)
    with pytest.warns(UserWarning, match="cannot be read"):
        found = checkpoints.restore(make_state())
    checkpoints.close()
    assert found is not None
    assert found.step == 10
    assert sorted(tmp_path.iterdir()) == before


def test_no_readable_checkpoint_names_the_folder(tmp_path):
    saved(tmp_path)
    for step in ("5", "10", "15"):
        damage(tmp_path / step, "truncated")
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    with pytest.raises(UserError, match=rf"none of the checkpoints in {tmp_path} can be read \(steps 5, 10, 15\)"):
        checkpoints.restore(make_state())
    checkpoints.close()


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, fingerprint="xyz")
    with pytest.raises(UserError, match=r"15 was written under another config"):
        checkpoints.restore(make_state())
    checkpoints.close()


def test_a_checkpoint_of_other_shapes_names_the_array(tmp_path):
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, fingerprint="abc")
    with pytest.raises(UserError, match=r"params.pruner.w is float32\[7, 3\] there and should be float32\[8, 3\]"):
        checkpoints.restore(make_state(width=8))
    checkpoints.close()


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, fingerprint="abc", weights="one")
    checkpoints.save(5, make_state(5), {})
    checkpoints.close()
    for weights, refused in (("one", False), ("two", True)):
        checkpoints = Checkpoints(tmp_path, fingerprint="abc", weights=weights, writable=False)
        if refused:
            with pytest.raises(UserError, match=r"5 was trained on other weights.*fingerprint one then, two now"):
                checkpoints.restore(make_state())
        else:
            assert checkpoints.restore(make_state()) is not None
        checkpoints.close()
