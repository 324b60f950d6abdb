"""The pure training step of the pruner.

It has two parts. `collect` is the frozen model's work, without gradient: features, masks drawn and what they
earned (`rcp.train.draws`), keep-labels. `policy.updates` optimizer updates on these follow, each the gradient of the
weighted objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rcp.config import Config
from rcp.nn import pruner
from rcp.nn.pruner import Pruned
from rcp.nn.reader import Reading
from rcp.nn.relax import relax
from rcp.objectives import OBJECTIVES, Draws, Labels, Outcome, Settings, combine, global_mean
from rcp.train.draws import Drawing, Drawn, keys_of, keys_of_noise
from rcp.train.judge_step import drawn_of
from rcp.train.labels import keep_labels, segment_gains
from rcp.train.networks import Networks, Params
from rcp.train.optim import objective_weight
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.table import looked_up
from rcp.types import Batch


class Collected(NamedTuple):
    """The frozen model's work on a batch; None where no objective needs it."""

    features: Array | None
    budget: Int[Array, " batch"]
    keys: Array
    labels: Labels | None
    full: Array | None  # log-probabilities of the full-context model
    drawn: Drawn | None
    baseline: Array | None


def needs_of(config: Config) -> frozenset[str]:
    """What the configured objectives need to be computed."""
    return frozenset().union(*(OBJECTIVES[name].needs for name in config.objectives))


def make_pruner_step(
    config: Config, networks: Networks, optimizer: optax.GradientTransformation, drawing: Drawing
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of the pruner's stage. `drawing`: of masks, where an objective needs them, and of budgets."""
    objectives = {name: OBJECTIVES[name] for name in config.objectives}
    needs, granularity, cut = needs_of(config), config.budget.granularity, config.budget.cut
    weights = {name: objective_weight(c, config.train.steps) for name, c in config.objectives.items()}
    settings = Settings(config.policy.baseline, config.policy.normalise, config.policy.clip, granularity)

    def collect(state: TrainState, frozen: Params, batch: Batch) -> Collected:
        keys = keys_of(state, batch)
        budget, drawn = drawing.budgets(batch, keys), None
        if "logged" in frozen:
            drawn, budget = drawn_of(looked_up(frozen["logged"], batch), drawing, batch)
        features = networks.features(state.params, frozen, batch)

        def read_batch(prompts: Batch) -> Reading:
            return networks.read(state.params, frozen, prompts)

        def through_mask(keep: Array) -> Array:
            return networks.read(state.params, frozen, batch, keep).nll

        labels = None
        if "labels" in needs:
            gains = looked_up(frozen.get("labels", {}), batch).get("gains")
            if gains is None:
                _, single = drawing.lengths(batch.role.shape[1])
                gains = segment_gains(config.labels, batch, read_batch, single)
            labels = keep_labels(config.labels, batch, gains, through_mask)
        full = None
        if "full" in needs:
            full = networks.read(state.params, frozen, batch, log_probs=True).log_probs
        if "draws" not in needs:
            return Collected(features, budget, keys, labels, full, None, None)

        scores = networks.score(state.params, batch, features, budget)
        if drawn is None:
            drawn = drawing.draw(state.params, frozen, batch, scores, budget, keys)
        baseline = None
        if config.policy.baseline == "self_critical":
            best, _ = drawing.prune(scores, batch, budget)
            earned, _ = drawing.earn(state.params, frozen, batch, jax.tree.map(lambda x: x[None], best))
            baseline = earned[0]
        elif config.policy.baseline == "moving_average":
            baseline = jnp.broadcast_to(state.aux["baseline"], drawn.reward.shape[1:])
        return Collected(features, budget, keys, labels, full, drawn, baseline)

    def outcome_of(params: Params, frozen: Params, batch: Batch, c: Collected) -> Outcome:
        scores = networks.score(params, batch, c.features, c.budget)
        keep = nll = kl = draws = None
        if "relaxed" in needs:
            own = keys_of_noise(c.keys) if config.relax.noise else None
            keep = relax(
                scores,
                batch,
                c.budget,
                granularity=granularity,
                temperature=config.relax.temperature,
                method=config.relax.method,
                cut=cut,
                keys=own,
            )
            reading = networks.read(params, frozen, batch, keep, log_probs="full" in needs)
            nll = reading.nll
            if c.full is not None:
                kl = _divergence(c.full, reading)
        if c.drawn is not None:
            log_prob, entropy = jax.vmap(
                lambda p: (
                    pruner.log_prob(scores, batch, p, granularity=granularity),
                    pruner.entropy(scores, batch, p, granularity=granularity),
                )
            )(c.drawn.pruned)
            draws = Draws(c.drawn.reward, c.drawn.log_prob, log_prob, entropy, c.baseline)
        dual = params["dual"]["budget"] if "dual" in params else None
        return Outcome(batch, scores.tokens, scores.segments, c.labels, keep, nll, kl, c.budget, draws, dual)

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        collected = jax.lax.stop_gradient(collect(state, frozen, batch))
        now = {name: jnp.asarray(weight(state.step), jnp.float32) for name, weight in weights.items()}

        def loss_of(params: Params) -> tuple[Array, dict[str, Array]]:
            outcome = outcome_of(params, frozen, batch, collected)
            return combine(objectives, now, outcome, settings, axis_name)

        def update(carry, _):
            params, opt_state = carry
            (loss, terms), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            loss, terms, grads = sum_shares((loss, terms, grads), axis_name)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            metrics = {"loss": loss, **terms, "grad_norm": optax.global_norm(grads)}
            return (apply(params, updates), opt_state), metrics

        carry = (state.params, state.opt_state)
        if config.policy.updates == 1:
            (params, opt_state), metrics = update(carry, None)
        else:
            (params, opt_state), metrics = jax.lax.scan(update, carry, None, length=config.policy.updates)
            metrics = jax.tree.map(lambda x: x[0], metrics)  # of the first: before the batch was learned from
        aux = dict(state.aux)
        if (drawn := collected.drawn) is not None:
            mean = sum_shares(global_mean(drawn.reward.mean(0), batch.weight, axis_name), axis_name)
            exact = global_mean(drawn.exact.astype(jnp.float32).mean(0), batch.weight, axis_name)
            metrics |= {"reward": mean, "exact_match": sum_shares(exact, axis_name)}
            for name, counts in _counts(drawn.pruned, granularity).items():
                metrics[name] = sum_shares(global_mean(counts, batch.weight, axis_name), axis_name)
            if "baseline" in aux:
                decay = config.policy.baseline_decay
                moved = decay * aux["baseline"] + (1 - decay) * mean
                aux["baseline"] = jnp.where(jnp.isfinite(mean), moved, aux["baseline"])
        if "dual" in params:
            metrics["multiplier"] = params["dual"]["budget"]
        return finish(state, params, opt_state, aux, metrics, config.policy.updates)

    return step


def finish(
    state: TrainState, params: Params, opt_state: Any, aux: dict[str, Any], metrics: Metrics, updates: int
) -> tuple[TrainState, Metrics]:
    """The next state, and the metrics with the counts of non-finite *steps* (the optimizer counts updates)."""
    new = opt_state.total_notfinite > state.opt_state.total_notfinite
    metrics["skipped"] = new.astype(jnp.float32)
    metrics["nonfinite_run"] = ((opt_state.notfinite_count + (updates - 1)) // updates).astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state, aux, state.key), metrics


def apply(params: Params, updates: Any) -> Params:
    """The parameters moved by an optimizer's updates."""
    return cast(Params, optax.apply_updates(params, updates))


def _counts(pruned: Pruned, granularity: pruner.Granularity) -> dict[str, Float[Array, " batch"]]:
    """Means over an example's draws: context tokens kept; where no budget decides, also segments that survived."""
    counts = {"kept": pruned.kept} | ({"survived": pruned.drawn} if granularity == "independent" else {})
    return {name: jnp.mean(count.astype(jnp.float32), axis=0) for name, count in counts.items()}


def _divergence(full: Array, reading: Reading) -> Float[Array, " batch"]:
    """KL(full || pruned) of the next token, mean over the answer's places."""
    assert reading.log_probs is not None
    values = jnp.sum(jnp.exp(full) * (full - reading.log_probs), axis=-1)
    count = jnp.maximum(reading.answer_tokens, 1).astype(jnp.float32)
    return jnp.sum(jnp.where(reading.answer_mask, values, 0.0), axis=1) / count
