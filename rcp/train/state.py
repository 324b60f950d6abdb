"""What a training step turns into its successor."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree, UInt32


class TrainState(NamedTuple):
    """Everything a checkpoint holds about the numbers of a run. A pytree; the same on every device.

    Attributes:
      step: training steps taken in this stage (skipped ones included).
      params: the trainable partitions, "pruner", "model", "lora", "dual"; absent where not trained.
      opt_state: of the one optax chain.
      aux: running values that no gradient reaches, such as "baseline".
      key: raw data of the stage's base PRNG key. Constant: a step folds `step` and the example's index into it, so that
        draws depend neither on the split over devices nor on where a run was interrupted.
    """

    step: Int32[Array, ""]
    params: dict[str, PyTree]
    opt_state: PyTree
    aux: dict[str, PyTree]
    key: UInt32[Array, " words"]


Metrics = dict[str, Float[Array, ""]]


class Step(Protocol):
    """A pure training step, written for one device's share of the batch.

    With `axis_name` it runs under a named axis and reduces gradients and metrics over it; with None the batch is
    the global one. It returns the state with `step + 1`, and metrics that are the same on every device. The metrics
    `skipped` (0 or 1) and `nonfinite_run` (consecutive skipped steps, this one included) steer the loop.
    """

    def __call__(
        self, state: TrainState, frozen: PyTree, batch: Any, *, axis_name: str | None
    ) -> tuple[TrainState, Metrics]: ...


def new_state(
    seed: int, params: dict[str, PyTree], opt_state: PyTree, aux: dict[str, PyTree] | None = None
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        aux=aux or {},
        key=jax.random.key_data(jax.random.key(seed)),
    )


def sum_shares(tree: Any, axis_name: str | None) -> Any:
    """Shares of global means, summed over the devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
