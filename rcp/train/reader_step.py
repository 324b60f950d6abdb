"""The pure training step of a from-scratch model, in the stage before the pruner's."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rcp.objectives import global_mean
from rcp.train.networks import Networks, Params
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.step import apply, finish
from rcp.types import Batch


def make_reader_step(
    networks: Networks, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of the model's own stage: answer NLL (nats, summed over the answer) on whole prompts."""

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        def loss_of(params: Params) -> tuple[Array, Array]:
            reading = networks.read(params, frozen, batch)
            exact = global_mean(reading.exact.astype(jnp.float32), batch.weight, axis_name)
            return global_mean(reading.nll_sum, batch.weight, axis_name), exact

        (loss, exact), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        loss, exact, grads = sum_shares((loss, exact, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply(state.params, updates)
        metrics = {"loss": loss, "exact_match": exact, "grad_norm": optax.global_norm(grads)}
        return finish(state, params, opt_state, state.aux, metrics, 1)

    return step
