"""The pure training step of the pruner.

It has two parts. `collect` is the frozen model's work, without gradient: features, masks drawn and what they
earned, keep-labels. `policy.updates` optimizer updates on these follow, each the gradient of the weighted objectives.
Random draws are folded from (key, step, example), so that they do not depend on how the batch is split over devices.
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
from rcp.objectives.rewards import RewardWeights, reward
from rcp.train.labels import keep_labels, segment_gains
from rcp.train.networks import Networks, Params
from rcp.train.optim import objective_weight
from rcp.train.outside import Judge
from rcp.train.state import Metrics, TrainState
from rcp.types import Batch, Role


class Collected(NamedTuple):
    """The frozen model's work on a batch; None where no objective needs it. `pruned` has a leading axis of samples."""

    features: Array | None
    budget: Int[Array, " batch"]
    keys: Array
    labels: Labels | None
    full: Array | None  # log-probabilities of the full-context model
    pruned: Pruned | None
    old_log_prob: Array | None
    reward: Array | None
    exact: Array | None
    baseline: Array | None


def needs_of(config: Config) -> frozenset[str]:
    """What the configured objectives need to be computed."""
    return frozenset().union(*(OBJECTIVES[name].needs for name in config.objectives))


def make_pruner_step(
    config: Config,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    lengths: Callable[[int], tuple[int, int]],
    judge: Judge | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of the pruner's stage.

    Args:
      lengths: from the static length of a whole prompt to those that hold it pruned and with one segment alone.
      judge: answers the drawn prompts in place of the model; see `rcp.train.outside`.
    """
    objectives = {name: OBJECTIVES[name] for name in config.objectives}
    needs, granularity, cut = needs_of(config), config.budget.granularity, config.budget.cut
    weights = {name: objective_weight(c, config.train.steps) for name, c in config.objectives.items()}
    settings = Settings(config.policy.baseline, config.policy.normalise, config.policy.clip, granularity)
    r = config.reward
    reward_weights = RewardWeights(r.exact_match, r.likelihood, r.length, r.kind, r.window)

    def budget_of(batch: Batch, keys: Array) -> Int[Array, " batch"]:
        tokens, rates = config.budget.keep_tokens, config.budget.keep_rates
        several = len(tokens or rates)
        choice = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 0, several))(keys)
        if tokens is not None:
            return jnp.asarray(tokens, jnp.int32)[choice]
        return pruner.budget_of_rate(batch, jnp.asarray(rates, jnp.float32)[choice])

    def collect(state: TrainState, frozen: Params, batch: Batch) -> Collected:
        base = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(base, index))(batch.index)
        budget = budget_of(batch, keys)
        prepared = {name: x[batch.index] for name, x in frozen.get("prepared", {}).items()}
        features = prepared.get("features")
        if features is None:
            features = networks.features(state.params, frozen, batch)
        short, single = lengths(batch.role.shape[1])

        def read_batch(prompts: Batch) -> Reading:
            return networks.read_compacted(state.params, frozen, prompts)

        def through_mask(keep: Array) -> Array:
            return networks.read(state.params, frozen, batch, keep).nll

        labels = None
        if "labels" in needs:
            gains = prepared.get("gains")
            if gains is None:
                gains = segment_gains(config.labels, batch, read_batch, single)
            labels = keep_labels(config.labels, batch, gains, through_mask)
        full = None
        if "full" in needs:
            full = networks.read(state.params, frozen, batch, log_probs=True).log_probs
        if "draws" not in needs:
            return Collected(features, budget, keys, labels, full, None, None, None, None, None)

        scores = networks.score(state.params, batch, features, budget)
        context = jnp.sum(batch.role == Role.CONTEXT, axis=1, dtype=jnp.int32)

        def earn(pruned: Pruned) -> tuple[Array, Array]:
            reading = read_batch(pruner.compact(batch, pruned.keep, short))
            return reward(reading.nll, reading.exact, pruned.kept, context, reward_weights), reading.exact

        def earn_outside(pruned: Pruned) -> tuple[Array, Array]:
            """Of several draws together; what the judge does not say of the likelihood is the model's."""
            assert judge is not None
            verdict = judge(pruned.keep, batch)
            if verdict.nll_sum is not None:
                answers = jnp.sum(batch.role == Role.ANSWER, axis=1, dtype=jnp.float32)
                nll = verdict.nll_sum / jnp.maximum(answers, 1.0)[None]
            elif r.likelihood:
                nll = jax.lax.map(lambda keep: read_batch(pruner.compact(batch, keep, short)).nll, pruned.keep)
            else:
                nll = jnp.zeros(verdict.exact.shape, jnp.float32)
            earned = reward(nll, verdict.exact, pruned.kept, context[None], reward_weights)
            return earned + verdict.trouble, verdict.exact

        def draw(sample: Array) -> tuple[Pruned, Array]:
            own = jax.vmap(lambda key: jax.random.fold_in(key, 1 + sample))(keys)
            pruned = pruner.prune(scores, batch, budget, granularity=granularity, cut=cut, keys=own)
            return pruned, pruner.log_prob(scores, batch, pruned, granularity=granularity)

        def one(sample: Array) -> tuple[Pruned, Array, Array, Array]:
            pruned, old = draw(sample)
            return (pruned, old, *earn(pruned))

        samples = jnp.arange(config.policy.samples, dtype=jnp.int32)
        if judge is None:
            pruned, old, rewards, exact = jax.lax.map(one, samples)
        else:
            pruned, old = jax.lax.map(draw, samples)
            rewards, exact = earn_outside(pruned)
        baseline = None
        if config.policy.baseline == "self_critical":
            best = pruner.prune(scores, batch, budget, granularity=granularity, cut=cut)
            if judge is None:
                baseline, _ = earn(best)
            else:
                baseline = earn_outside(jax.tree.map(lambda x: x[None], best))[0][0]
        elif config.policy.baseline == "moving_average":
            baseline = jnp.broadcast_to(state.aux["baseline"], rewards.shape[1:])
        return Collected(features, budget, keys, labels, full, pruned, old, rewards, exact, baseline)

    def outcome_of(params: Params, frozen: Params, batch: Batch, c: Collected) -> Outcome:
        scores = networks.score(params, batch, c.features, c.budget)
        keep = nll = kl = draws = None
        if "relaxed" in needs:
            own = jax.vmap(lambda key: jax.random.fold_in(key, 1))(c.keys) if config.relax.noise else None
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
        if c.pruned is not None:
            log_prob, entropy = jax.vmap(
                lambda p: (
                    pruner.log_prob(scores, batch, p, granularity=granularity),
                    pruner.entropy(scores, batch, p, granularity=granularity),
                )
            )(c.pruned)
            assert c.reward is not None and c.old_log_prob is not None
            draws = Draws(c.reward, c.old_log_prob, log_prob, entropy, c.baseline)
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
        if collected.reward is not None:
            mean = sum_shares(global_mean(collected.reward.mean(0), batch.weight, axis_name), axis_name)
            assert collected.exact is not None
            exact = global_mean(collected.exact.astype(jnp.float32).mean(0), batch.weight, axis_name)
            metrics |= {"reward": mean, "exact_match": sum_shares(exact, axis_name)}
            for name, counts in _counts(collected.pruned, granularity).items():
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


def sum_shares(tree: Any, axis_name: str | None) -> Any:
    """Shares of global means, summed over the devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _counts(pruned: Pruned | None, granularity: pruner.Granularity) -> dict[str, Float[Array, " batch"]]:
    """Means over an example's draws: context tokens kept; where no budget decides, also segments that survived."""
    assert pruned is not None
    counts = {"kept": pruned.kept} | ({"survived": pruned.drawn} if granularity == "independent" else {})
    return {name: jnp.mean(count.astype(jnp.float32), axis=0) for name, count in counts.items()}


def _divergence(full: Array, reading: Reading) -> Float[Array, " batch"]:
    """KL(full || pruned) of the next token, mean over the answer's places."""
    assert reading.log_probs is not None
    values = jnp.sum(jnp.exp(full) * (full - reading.log_probs), axis=-1)
    count = jnp.maximum(reading.answer_tokens, 1).astype(jnp.float32)
    return jnp.sum(jnp.where(reading.answer_mask, values, 0.0), axis=1) / count
