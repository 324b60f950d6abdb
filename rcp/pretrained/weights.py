"""From named tensors in a file to our stacked parameter tree, with every shape checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rcp.nn.transformer import Transformer, TransformerConfig, parameter_shapes
from rcp.types import UserError

MATRICES = frozenset({"q", "k", "v", "o", "gate", "up", "down", "head"})  # [outputs, inputs] in files


def assemble(
    config: TransformerConfig,
    names: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    available: Collection[str],
    source: str,
    *,
    dtype: str = "float32",
    param_dtype: str | None = None,
    fix: Callable[[str, np.ndarray], np.ndarray] = lambda name, value: value,
    ignore: Iterable[str] = (),
) -> Transformer:
    """Builds a `Transformer` from a file's tensors.

    Args:
      names: our parameter name -> the file's, with "{i}" for the layer's number.
      read: gives a tensor by the file's name, matrices as [outputs, inputs].
      available: the file's tensor names.
      source: the file, for error messages.
      fix: changes a tensor, by our parameter name, before it is transposed.
      ignore: endings of file names that may be left unread.

    Raises:
      UserError: a tensor is missing, has another shape than the configuration says, or would be left unread.
    """
    stored = jnp.dtype(param_dtype or dtype)
    used: set[str] = set()

    def get(name: str, shape: tuple[int, ...], layer: int | None = None) -> np.ndarray:
        file_name = names[name] if layer is None else names[name].format(i=layer)
        if file_name not in available:
            raise UserError(f"{source}: tensor {file_name!r} is missing (expected for parameter {name!r})")
        used.add(file_name)
        value = read(file_name)
        wanted = shape[::-1] if name in MATRICES else shape
        if value.shape != wanted:
            raise UserError(
                f"{source}: tensor {file_name!r} has shape {value.shape}, but its configuration says {wanted}"
            )
        value = fix(name, value)
        return value.T if name in MATRICES else value

    def fill(name: str, shape: tuple[int, ...]) -> Any:
        out = np.empty(shape, stored)
        for layer in range(shape[0]):
            out[layer] = get(name, shape[1:], layer)
        return jnp.asarray(out)

    shapes = parameter_shapes(config)
    params: dict[str, Any] = {
        name: jnp.asarray(np.asarray(get(name, shape), stored)) for name, shape in shapes.items() if name != "layers"
    }
    params["layers"] = {name: fill(name, shape) for name, shape in shapes["layers"].items()}
    unread = sorted(name for name in set(available) - used if not name.endswith(tuple(ignore)))
    if unread:
        raise UserError(
            f"{source}: tensor {unread[0]!r} ({len(unread)} in all) has no place in this architecture, "
            "so the model would not be the published one"
        )
    return Transformer(config, params=params, dtype=dtype)
