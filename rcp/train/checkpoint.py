"""Checkpoints of one training stage, complete or absent. The only file that knows orbax.

A checkpoint holds the training state, the pipeline's state and the step, so that a run that goes on from it does what
it would have done. Orbax writes into a temporary folder and renames it: a killed process leaves no half checkpoint.
What a disk or a copy can still do to it is caught by a checksum of every array.

With several processes all of them make the same calls, on one shared folder; the first writes.
"""

from __future__ import annotations

import logging
import shutil
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from rcp.train.state import TrainState
from rcp.types import UserError

FORMAT = 1


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back: the state (numpy), the pipeline's state, the steps taken in the stage."""

    state: TrainState
    pipeline: Any
    step: int


class Checkpoints:
    """The checkpoints of one stage in `folder`, the newest `keep` of them."""

    def __init__(
        self,
        folder: str | Path,
        *,
        fingerprint: str,
        weights: str | None = None,
        keep: int = 2,
        writable: bool = True,
    ):
        """Opens the folder, which need not be there yet.

        Args:
          fingerprint: of the configuration (`rcp.config_saved.fingerprint`); others' checkpoints are refused.
          weights: fingerprint of the published weights that the stage starts from; the same.
          writable: without it nothing in the folder is touched, so that a running training is not disturbed.
        """
        # orbax tells of every step it takes, and warns of every folder opened for reading alone
        logging.getLogger("absl").setLevel(logging.WARNING if writable else logging.ERROR)
        self.folder = Path(folder).absolute()
        self._fingerprint, self._weights = fingerprint, weights
        self._writable = writable
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if writable else None,
            create=writable,
            read_only=not writable,
        )
        if writable and jax.process_index() == 0:
            _clear_unfinished(self.folder)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: TrainState, pipeline: Any) -> None:
        """Starts to write; returns as soon as another step may run.

        Args:
          step: steps taken in this stage; does nothing where that checkpoint is there already.
          state: numpy arrays that nobody will change (`Parallel.fetch`).
          pipeline: the pipeline's state that gives the batch of step `step` next; fit for json, or text as bytes (which
            comes back as str).
        """
        if step == self._manager.latest_step():
            return
        arrays = named(state)
        meta = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "weights": self._weights,
            "step": step,
            "pipeline": pipeline.decode() if isinstance(pipeline, bytes) else pipeline,
            "arrays": {name: [list(x.shape), str(x.dtype), _checksum(x)] for name, x in arrays.items()},
        }
        # tensorstore holds no empty arrays, and those need no writing
        stored = {name: x for name, x in arrays.items() if x.size}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(stored), meta=ocp.args.JsonSave(meta))
        )

    def restore(self, like: TrainState) -> Restored | None:
        """The newest readable checkpoint, or None where there is none at all.

        Where the newest cannot be read, the one before it is taken, and the newest set aside: renamed, with a warning.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          UserError: a checkpoint of another configuration or of other shapes; or some are there and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        unread: list[tuple[int, Exception]] = []
        found = None
        for step in steps:
            try:
                found = self._read(step, like)
                break
            except UserError:
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                unread.append((step, error))
        if steps and found is None:
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read (steps {', '.join(map(str, sorted(steps)))}): "
                f"restore them from a copy, or delete the folder to start this stage again. {_reason(unread[-1][1])}"
            )
        for step, error in unread:
            self._set_aside(step, error)
        return found

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, like: TrainState) -> Restored:
        meta = self._item(step, "meta", ocp.args.JsonRestore())
        if meta["fingerprint"] != self._fingerprint:
            raise UserError(
                f"the checkpoint {self.folder / str(step)} was written under another config; choose another --workdir "
                "or bring back the config.json of that run"
            )
        weights = meta.get("weights", self._weights)
        if weights != self._weights:
            raise UserError(
                f"the checkpoint {self.folder / str(step)} was trained on other weights than config.model.name has now "
                f"(fingerprint {weights} then, {self._weights} now): bring those back or choose another --workdir"
            )
        expected = named(like)
        found = {name: (tuple(shape), dtype) for name, (shape, dtype, _) in meta["arrays"].items()}
        if wrong := misfit(expected, found):
            raise UserError(f"the checkpoint {self.folder / str(step)} does not fit this model: {wrong}")
        # StandardRestore reads shape and type of these, never a value
        target = {name: x for name, x in expected.items() if x.size}
        arrays = dict(self._item(step, "state", ocp.args.StandardRestore(target)))
        for name, x in expected.items():
            arrays[name] = np.asarray(arrays[name]) if x.size else np.zeros(x.shape, x.dtype)
            if _checksum(arrays[name]) != meta["arrays"][name][2]:
                raise ValueError(f"the values of {name} do not match their checksum")
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])
        return Restored(state=state, pipeline=meta["pipeline"], step=meta["step"])

    def _item(self, step: int, name: str, args: Any) -> Any:
        return dict(self._manager.restore(step, args=ocp.args.Composite(**{name: args})).items())[name]

    def _set_aside(self, step: int, error: Exception) -> None:
        folder = self.folder / str(step)
        warnings.warn(
            f"{folder} cannot be read, going back to the checkpoint before it: {_reason(error)}", stacklevel=3
        )
        if self._writable and jax.process_index() == 0:
            names = (f"broken-{step}" + (f"-{n}" if n else "") for n in range(1000))
            folder.rename(next(path for name in names if not (path := self.folder / name).exists()))
        if self._writable:
            self._manager.reload()


def _clear_unfinished(folder: Path) -> None:
    """Removes what a killed process had begun to write.

    Orbax would do it behind the scenes (`cleanup_tmp_directories`), where two openings of one folder, one after the
    other, meet over the same files and the later one's first save raises FileNotFoundError.
    """
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path)


def newest_step(folder: Path) -> int:
    """Of the checkpoints in a stage's folder; 0 where there are none. One that was only begun does not count."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def named(state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by their dotted path ("params.pruner.layers.kernel"), in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    if len(found) != len(leaves):
        raise ValueError("two arrays of the training state have the same dotted path: a key holds a dot")
    return found


Kind = tuple[tuple[int, ...], str]
"""Shape and dtype."""


def misfit(expected: Mapping[str, np.ndarray], found: Mapping[str, Kind]) -> str:
    """The first array that is missing, unknown or of another shape or dtype, in words; empty where there is none."""
    for name in [*expected, *found]:
        here = (expected[name].shape, str(expected[name].dtype)) if name in expected else None
        if found.get(name) != here:
            return f"{name} is {_spell(found.get(name))} there and should be {_spell(here)}"
    return ""


def _checksum(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data) if x.size else 0


def _spell(kind: Kind | None) -> str:
    return "absent" if kind is None else f"{kind[1]}{list(kind[0])}"


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"
