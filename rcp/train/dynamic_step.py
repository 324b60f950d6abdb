"""The pure training step of dynamic context pruning (Anagnostidis et al., arXiv 2305.15805).

    loss = cross-entropy of every next token + gamma * mean of I over layers and pairs of a token and an earlier one,

with alpha of the gates growing by a cosine. I hangs on alpha alone for how hard it is: there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from rcp.config import Config
from rcp.config_dynamic import DynamicConfig
from rcp.nn.gated import read_gated
from rcp.nn.layout import first_tokens, prompt_lengths
from rcp.nn.reader import next_token
from rcp.objectives import global_mean
from rcp.train.networks import model_params
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.step import apply, finish
from rcp.types import Batch

Params = dict[str, Any]


def alpha_at(config: DynamicConfig, steps: int, step: Array | int) -> Float[Array, ""]:
    """alpha at a training step, float32: end + (begin - end) (1 + cos(pi step / alpha_steps)) / 2, then the end."""
    part = jnp.minimum(jnp.asarray(step, jnp.float32) / (config.alpha_steps or max(steps, 1)), 1.0)
    return config.alpha_end + 0.5 * (config.alpha_begin - config.alpha_end) * (1 + jnp.cos(math.pi * part))


def make_dynamic_step(
    graph: nnx.GraphDef, config: Config, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step. The interaction is the partition "pruner"; the model is "model", "lora" beside it, or frozen.

    Metrics: `loss`, `nll` (nats a token), `kept` (the mean of I), `alpha`, `grad_norm`.
    """

    def losses(params: Params, frozen: Params, batch: Batch, alpha: Array) -> tuple[Array, Array]:
        """Of each example: the mean NLL of its next tokens, and the mean of I."""
        model = nnx.merge(graph, model_params(params, frozen))
        lengths = prompt_lengths(batch)
        read = read_gated(model, params["pruner"], batch.tokens, alpha=alpha, lengths=lengths)
        there = first_tokens(lengths - 1, batch.tokens.shape[1] - 1)
        nll = next_token(model, read.h[:, :-1], batch.tokens[:, 1:], there)[0]
        return nll.sum(axis=1) / jnp.maximum(lengths - 1, 1).astype(jnp.float32), read.kept.mean(axis=0)

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        alpha = alpha_at(config.dynamic, config.train.steps, state.step)

        def loss_of(params: Params) -> tuple[Array, tuple[Array, Array]]:
            nll, kept = (global_mean(x, batch.weight, axis_name) for x in losses(params, frozen, batch, alpha))
            return nll + config.dynamic.gamma * kept, (nll, kept)

        (loss, (nll, kept)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        loss, nll, kept, grads = sum_shares((loss, nll, kept, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "nll": nll, "kept": kept, "alpha": alpha, "grad_norm": optax.global_norm(grads)}
        return finish(state, apply(state.params, updates), opt_state, state.aux, metrics, 1)

    return step
