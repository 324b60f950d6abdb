"""The budget as a constraint on average, for the "sigmoid" relaxation, whose mask has no exact count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp.objectives.base import Outcome, Settings
from rcp.types import Role


def budget(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """Lagrangian of `kept share <= asked share`: multiplier * violation; the mask descends, the multiplier ascends.

    The multiplier is a parameter (partition "dual"). Its own gradient is minus the violation, so that one descent step
    of the optimizer is a step of dual ascent; the optimizer keeps it non-negative.
    """
    assert outcome.keep is not None and outcome.multiplier is not None
    context = outcome.batch.role == Role.CONTEXT
    count = jnp.maximum(jnp.sum(context, axis=1, dtype=jnp.int32), 1).astype(jnp.float32)
    share = jnp.sum(jnp.where(context, outcome.keep, 0.0), axis=1) / count
    violation = share - jnp.minimum(outcome.asked.astype(jnp.float32) / count, 1.0)
    held = jax.lax.stop_gradient
    return held(outcome.multiplier) * violation - outcome.multiplier * held(violation)
