"""The one optax chain: a partition each for pruner, model, LoRA factors and the Lagrange multiplier."""

from __future__ import annotations

from typing import Any

import jax
import optax

from rcp.config import ObjectiveConfig, OptimConfig

NEVER = 2**30  # non-finite steps in a row after which optax would apply one all the same; the loop stops long before


def learning_rate(config: OptimConfig, peak: float, updates: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, linear or cosine to 0 at `updates` optimizer updates."""
    rest = max(updates - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int, partitions: tuple[str, ...]) -> optax.GradientTransformation:
    """AdamW with clipping by global norm in each partition; gradient ascent, kept non-negative, for "dual".

    Accumulates `config.accumulate` gradients an update. A non-finite gradient changes nothing but two counts in the
    state (an `optax.ApplyIfFiniteState`): `notfinite_count` in a row and `total_notfinite` in all.

    Args:
      steps: gradients that will be given, for the schedule.
      partitions: the keys of the parameters.
    """
    updates = max(steps // config.accumulate, 1)

    def adam(peak: float) -> optax.GradientTransformation:
        schedule = learning_rate(config, peak, updates)
        clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
        return optax.chain(clip, optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay))

    def rate(own: float | None) -> float:
        return config.learning_rate if own is None else own

    available = {
        "pruner": adam(config.learning_rate),
        "model": adam(rate(config.model_learning_rate)),
        "lora": adam(rate(config.model_learning_rate)),
        "dual": optax.chain(optax.sgd(rate(config.dual_learning_rate)), optax.keep_params_nonnegative()),
    }

    def labels(params: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()}

    chain: Any = optax.partition({name: available[name] for name in partitions}, labels)
    if config.accumulate > 1:
        chain = optax.MultiSteps(chain, config.accumulate).gradient_transformation()
    return optax.apply_if_finite(chain, NEVER)


def objective_weight(config: ObjectiveConfig, steps: int) -> optax.Schedule:
    """Weight of an objective at a training step."""
    length = max(config.steps or steps, 1)
    if config.schedule == "constant":
        return optax.constant_schedule(config.weight)
    if config.schedule == "linear":
        return optax.linear_schedule(config.weight * config.begin, config.weight * config.end, length)
    fall = optax.cosine_decay_schedule(1.0, length)
    return lambda step: config.weight * (config.end + (config.begin - config.end) * fall(step))
