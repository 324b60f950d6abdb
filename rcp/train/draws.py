"""Masks drawn for a batch, and what they earn: the frozen model's part of the reinforcement objectives.

Random draws are folded from (key, step, example), so that they do not depend on how the batch is split over devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.config import Config
from rcp.nn import pruner
from rcp.nn.layout import context_tokens
from rcp.nn.pruner import Pruned, Scores
from rcp.objectives.rewards import RewardWeights, reward
from rcp.train.lengths import Lengths
from rcp.train.networks import Networks, Params
from rcp.train.outside import Judge
from rcp.train.state import TrainState
from rcp.types import Batch, Role


class Drawn(NamedTuple):
    """M masks of each example. `pruned` has a leading axis of samples; `log_prob` is under the scores that drew."""

    pruned: Pruned
    log_prob: Float[Array, "samples batch"]
    reward: Float[Array, "samples batch"]
    exact: Bool[Array, "samples batch"]


def keys_of(state: TrainState, batch: Batch) -> Array:
    """A key an example, of this step."""
    base = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.vmap(lambda index: jax.random.fold_in(base, index))(batch.index)


def keys_of_sample(keys: Array, sample: Int[Array, ""] | int) -> Array:
    """The keys of one of the masks drawn for each example, of those that `keys_of` gives; budgets have number 0."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1 + sample))(keys)


def keys_of_noise(keys: Array) -> Array:
    """The keys of the relaxed mask's noise: of no sample's, whose draw it would else repeat."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1 << 20))(keys)


@dataclass(frozen=True)
class Drawing:
    """How a config draws and judges masks.

    Attributes:
      lengths: from the static length of a whole prompt to those that hold it pruned and with one segment alone.
      judge: answers the drawn prompts in place of the model; see `rcp.train.outside`.
    """

    config: Config
    networks: Networks
    lengths: Lengths
    judge: Judge | None = None

    def budgets(self, batch: Batch, keys: Array) -> Int[Array, " batch"]:
        """One of the config's budgets for each example, in context tokens."""
        tokens, rates = self.config.budget.keep_tokens, self.config.budget.keep_rates
        several = len(tokens or rates)
        choice = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 0, several))(keys)
        if tokens is not None:
            return jnp.asarray(tokens, jnp.int32)[choice]
        return pruner.budget_of_rate(batch, jnp.asarray(rates, jnp.float32)[choice])

    def prune(
        self, scores: Scores, batch: Batch, budget: Int[Array, " batch"], keys: Array | None = None
    ) -> tuple[Pruned, Float[Array, " batch"]]:
        """A mask of each example, drawn or, without keys, the best; and its log-probability."""
        granularity = self.config.budget.granularity
        pruned = pruner.prune(scores, batch, budget, granularity=granularity, cut=self.config.budget.cut, keys=keys)
        return pruned, pruner.log_prob(scores, batch, pruned, granularity=granularity)

    def earn(
        self, params: Params, frozen: Params, batch: Batch, pruned: Pruned
    ) -> tuple[Float[Array, "samples batch"], Bool[Array, "samples batch"]]:
        """Reward and exact match of masks with a leading axis of samples."""
        r, (short, _) = self.config.reward, self.lengths(batch.role.shape[1])
        weights = RewardWeights(r.exact_match, r.likelihood, r.length, r.kind, r.window)

        def read(keep: Bool[Array, "batch tokens"]) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
            reading = self.networks.read_compacted(params, frozen, pruner.compact(batch, keep, short))
            return reading.nll, reading.exact

        trouble = 0.0
        if self.judge is None:
            nll, exact = jax.lax.map(read, pruned.keep)
        else:  # what the judge does not say of the likelihood is the model's
            verdict = self.judge(pruned.keep, batch)
            exact, trouble = verdict.exact, verdict.trouble
            if verdict.nll_sum is not None:
                answers = jnp.sum(batch.role == Role.ANSWER, axis=1, dtype=jnp.float32)
                nll = verdict.nll_sum / jnp.maximum(answers, 1.0)[None]
            elif r.likelihood:
                nll, _ = jax.lax.map(read, pruned.keep)
            else:
                nll = jnp.zeros(exact.shape, jnp.float32)
        return reward(nll, exact, pruned.kept, context_tokens(batch)[None], weights) + trouble, exact

    def draw(
        self, params: Params, frozen: Params, batch: Batch, scores: Scores, budget: Int[Array, " batch"], keys: Array
    ) -> Drawn:
        """`policy.samples` masks of each example and what they earn."""

        def one(sample: Int[Array, ""]) -> tuple[Pruned, Float[Array, " batch"]]:
            return self.prune(scores, batch, budget, keys_of_sample(keys, sample))

        pruned, log_prob = jax.lax.map(one, jnp.arange(self.config.policy.samples, dtype=jnp.int32))
        return Drawn(pruned, log_prob, *self.earn(params, frozen, batch, pruned))
