"""A trained run without what only training needs: a folder with `config.json` and `trained.npz`, to be passed on.

It is used like the folder it came from (`rcp eval`, `rcp prune`, `rcp tables`, the `load_*` of `rcp.infer`), but cannot
be trained further: the optimizer's state, the pipeline's and what was computed once for all examples stay behind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rcp.train.checkpoint import misfit, named
from rcp.train.table import TABLES
from rcp.types import UserError

FORMAT = 1
FILE = "trained.npz"
META = "meta.json"


def is_export(workdir: Path) -> bool:
    return (workdir / FILE).is_file()


def write_export(
    output: Path, config: Path, params: Mapping[str, PyTree], *, fingerprint: str, weights: str | None, step: int
) -> None:
    """Writes the folder `output`, complete or not at all.

    Args:
      config: the run's saved one. params: by partition.
      fingerprint, weights: of the config and of published weights, if there are, as checkpoints carry them.
      step: steps of the last stage.

    Raises:
      UserError: `output` is there already.
    """
    if output.exists():
        raise UserError(f"--output={output} is there already: expected the name of a folder to be made")
    output.parent.mkdir(parents=True, exist_ok=True)
    meta = {"format": FORMAT, "fingerprint": fingerprint, "weights": weights, "step": step}
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        shutil.copyfile(config, partial / "config.json")
        with zipfile.ZipFile(partial / FILE, "w", zipfile.ZIP_DEFLATED) as file:  # as numpy's, beside the meta data
            file.writestr(META, json.dumps(meta))
            for name, x in named(_kept(params)).items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, x, allow_pickle=False)
        partial.chmod(0o755)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_export(
    workdir: Path, like: Mapping[str, PyTree], *, fingerprint: str, weights: str | None
) -> tuple[dict[str, Any], int]:
    """The params of an export (numpy) in the structure of `like`, and the last stage's steps.

    Raises:
      UserError: it cannot be read, belongs to another config or other weights, or has other shapes than `like`.
    """
    path = workdir / FILE
    try:
        with zipfile.ZipFile(path) as file:
            meta = json.loads(file.read(META))
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != META}
        step = int(meta["step"])
        trained_with, trained_on = meta["fingerprint"], meta["weights"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}): take a new copy of it") from error
    if trained_with != fingerprint:
        raise UserError(f"{path} was trained with another config than the config.json beside it")
    if trained_on != weights:
        raise UserError(
            f"{path} was trained on other weights than config.model.name has now (fingerprint {trained_on} then, "
            f"{weights} now): bring those back"
        )
    kept = _kept(like)
    wanted = named(kept)
    kinds = {name: (x.shape, str(x.dtype)) for name, x in arrays.items()}
    if wrong := misfit(wanted, kinds):
        raise UserError(f"{path} does not fit this model: {wrong}")
    return jax.tree.unflatten(jax.tree.structure(kept), [arrays[name] for name in wanted]), step


def _kept(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {name: part for name, part in params.items() if name not in TABLES}
