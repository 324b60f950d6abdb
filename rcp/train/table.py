"""Tables with a row a training example: what one stage computes once, and the stages after it look up."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from rcp.train.state import TrainState, sum_shares
from rcp.types import Batch

Table = dict[str, Array]
TABLES = ("labels", "states", "logged")
"""The "parameters" of stages that fill one: `rcp.train.prepare_step`, `rcp.train.judge_step`."""


def looked_up(table: Table, batch: Batch) -> Table:
    """The rows of a batch's examples."""
    return {name: x[batch.index] for name, x in table.items()}


def with_rows(state: TrainState, name: str, batch: Batch, rows: Table, axis_name: str | None) -> TrainState:
    """The state behind a step that fills the rows of a batch's examples in the table that are its parameters `name`."""
    table = {key: _written(x, batch.index, rows[key], axis_name) for key, x in state.params[name].items()}
    return state._replace(step=state.step + 1, params={name: table})


def _written(table: Array, index: Array, rows: Array, axis_name: str | None) -> Array:
    """The table with these rows, and with those of the other devices; one that stands in several is their mean."""
    total = jnp.zeros_like(table).at[index].add(rows)
    count = jnp.zeros(table.shape[0], jnp.float32).at[index].add(1.0)
    total, count = sum_shares((total, count), axis_name)
    count = jnp.expand_dims(count, tuple(range(1, table.ndim)))
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), table)
