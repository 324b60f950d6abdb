"""Pruned contexts on disk: one npz file, which says of what model it is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rcp.nn.cache import Context, Entries
from rcp.nn.transformer import Transformer
from rcp.types import UserError

FORMAT = 1
PARTS = ("k", "v", "position", "length")
DECIDING = ("n_layers", "n_kv_heads", "head_dim", "rope_theta", "rope_scaling")


def save_context(path: str | Path, context: Context, model: Transformer, *, weights: str = "") -> None:
    """Writes a context; a file that was there is replaced whole or not at all.

    Args:
      weights: fingerprint of the model's weights, as `rcp.pretrained` gives it; "" where it has none.
    """
    path = Path(path)
    if any(run.keep is not None for run in context.runs):
        raise ValueError("a masked context is not saved: compact it first")
    meta = _identity(model, weights) | {"runs": len(context.runs)}
    arrays = {"position": np.asarray(context.position), "meta": np.asarray(json.dumps(meta))}
    for number, run in enumerate(context.runs):
        for name in PARTS:
            value = np.asarray(getattr(run, name))
            # numpy's files know no bfloat16: its bits are written
            arrays[f"{number}/{name}"] = value.view(np.uint16) if value.dtype == jnp.bfloat16 else value
        if run.scales is not None:
            arrays |= {f"{number}/scale_{i}": np.asarray(scale) for i, scale in enumerate(run.scales)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    partial.replace(path)


def load_context(path: str | Path, model: Transformer, *, weights: str = "") -> Context:
    """The context in a file that was written for this model.

    Raises:
      UserError: no such file, one that cannot be read, or one of another model; the message names what differs.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a context written by save_context")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays["meta"]))
        count = int(meta["runs"])
        parts = [[arrays[f"{number}/{name}"] for name in PARTS] for number in range(count)]
        scales = [[arrays.get(f"{number}/scale_{i}") for i in range(2)] for number in range(count)]
        position = arrays["position"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise UserError(f"{path}: not a whole context file ({type(error).__name__}: {error})") from error
    expected = _identity(model, weights)
    if differ := [key for key in expected if meta.get(key) != expected[key]]:
        found = "; ".join(f"{key} {meta.get(key)!r} there, {expected[key]!r} here" for key in differ)
        raise UserError(f"{path}: a context of another model: {found}")
    runs = []
    for (k, v, at, length), (k_scale, v_scale) in zip(parts, scales):
        if k.dtype == np.uint16:
            k, v = (x.view(jnp.dtype(jnp.bfloat16)) for x in (k, v))
        entries = Entries(jnp.asarray(k), jnp.asarray(v), jnp.asarray(at), jnp.asarray(length))
        if k_scale is not None and v_scale is not None:
            entries = entries._replace(scales=(jnp.asarray(k_scale), jnp.asarray(v_scale)))
        runs.append(entries)
    return Context(tuple(runs), jnp.asarray(position))


def _identity(model: Transformer, weights: str) -> dict[str, Any]:
    """What must be the same for a cache to mean the same."""
    config = asdict(model.config)
    return {"format": FORMAT, "weights": weights, "dtype": str(model.dtype)} | {key: config[key] for key in DECIDING}
