"""Estimators of the gradient of an expected reward, d/dphi E[R(S)] with |S| = k, all behind `estimate`.

Each belongs to one distribution of `rcp.sampling`, named in `ESTIMATORS`: Plackett-Luce (the order drawn by Gumbel
top-k, or its set; the reward sees the set, so both have the same expectation) or conditional Bernoulli. For k > 1 their
gradients differ, so an estimator is only to be compared with the gradient of its own distribution.

*Score functions* see the reward as a black box, call it on exact subsets and are unbiased:

    g = 1/m sum_s (R(S_s) - b_s) d/dphi log p(S_s),   b_s = the mean of the other rewards, or 0.

*Pathwise* estimators differentiate the reward with respect to the mask and are biased: what they follow depends on how
the reward is continued to masks that are no sets.

Not here: unordered-set REINFORCE without replacement (arXiv 2002.06043). It draws several *distinct values* of one
variable; here a value is a whole subset, and distinct subsets would need a search over orders (stochastic beam search).
`set_log_prob`, from the same paper, is used by "reinforce-set-loo".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from rcp.sampling.conditional import conditional_bernoulli, marginals
from rcp.sampling.gumbel import gumbel_top_k, top_k
from rcp.sampling.order import gumbel_noise
from rcp.sampling.relaxed import relaxed_top_k, straight_through
from rcp.sampling.subset import leave_one_out, set_log_prob

Reward = Callable[[Array], Array]
Distribution = Literal["plackett-luce", "conditional-bernoulli"]


class Estimate(NamedTuple):
    """What `estimate` returns.

    Attributes:
      gradient: float32 [tokens], of the expected reward (to ascend); exactly 0 where the logit is +inf or -inf.
      reward_mean: float32 scalar, the mean reward of the samples; of *relaxed* masks for "relaxed-...".
    """

    gradient: Float[Array, " tokens"]
    reward_mean: Float[Array, ""]


class Kind(NamedTuple):
    """What an estimator promises.

    Attributes:
      distribution: the one whose expected reward it differentiates.
      unbiased: for every reward; the others are biased for all but special ones.
      differentiates: needs a reward that is differentiable in the mask.
    """

    distribution: Distribution
    unbiased: bool
    differentiates: bool


ESTIMATORS: Mapping[str, Kind] = MappingProxyType(
    {
        "reinforce": Kind("plackett-luce", True, False),
        "reinforce-loo": Kind("plackett-luce", True, False),
        "reinforce-set-loo": Kind("plackett-luce", True, False),
        "conditional-loo": Kind("conditional-bernoulli", True, False),
        "conditional-linear": Kind("conditional-bernoulli", True, True),
        "simple": Kind("conditional-bernoulli", False, True),
        "imle": Kind("plackett-luce", False, True),
        "straight-through": Kind("plackett-luce", False, True),
        "relaxed-threshold": Kind("plackett-luce", False, True),
        "relaxed-successive": Kind("plackett-luce", False, True),
    }
)


def estimate(
    name: str,
    key: Array,
    logits: Float[Array, " tokens"],
    k: int | Int[Array, ""],
    reward: Reward,
    samples: int,
    *,
    temperature: float | Float[Array, ""] = 0.5,
    step: float | Float[Array, ""] = 1.0,
    max_k: int | None = None,
) -> Estimate:
    """One estimate of d/dphi E[R(S)] from `samples` draws. For a batch: `jax.vmap` over key, logits and k.

    | name | score or path | paper |
    |---|---|---|
    | reinforce | ordered log-probability, b = 0 (noise of mean 0 at k = tokens) | Williams 1992 |
    | reinforce-loo | ordered log-probability, leave-one-out b | Kool et al. 2019 |
    | reinforce-set-loo | the set's log-probability, leave-one-out b | arXiv 2002.06043 for `set_log_prob` |
    | conditional-loo | mask less marginals, leave-one-out b: SFESS with an exact sampler | arXiv 2407.16058 |
    | conditional-linear | the same, less a linear control variate; see `_linear` | after MuProp, arXiv 1511.05176 |
    | simple | z + mu - stop(mu) | SIMPLE, arXiv 2210.01941 |
    | imle | difference of two perturbed top-k; see `_imle` | I-MLE, arXiv 2106.01798 |
    | straight-through | top-k of phi + g, gradient of the threshold relaxation | arXiv 1308.3432, 1611.01144 |
    | relaxed-threshold | threshold relaxation of phi + g, for value and gradient | see `relaxed_top_k` |
    | relaxed-successive | k softmaxes of phi + g, for value and gradient | arXiv 1901.10517 |

    At k = tokens the set is certain and the gradient 0, up to rounding, but for "reinforce" (above) and
    "relaxed-successive", whose entries stay soft.

    Args:
      name: one of `ESTIMATORS`.
      key: random key.
      logits: [tokens] of any floating type; computed in float32. `+inf` is always kept, `-inf` never.
      k: an int, or a traced integer scalar.
      reward: maps float32 masks [samples, tokens] to [samples], each row by itself. A score function calls it on masks
        of zeros and ones and never differentiates it.
      samples: how many are drawn, static; at least 2 with a leave-one-out baseline.
      temperature: > 0; of "straight-through" and "relaxed-...", in units of the logits. Higher: more bias, less
        variance.
      step: > 0; of "imle", how far the reward's slope moves the logits. Higher: more bias, less variance.
      max_k: for a traced k: a static bound for those of conditional Bernoulli and "relaxed-successive", `tokens` where
        None.

    Raises:
      TypeError: logits not of a floating type, k not an integer.
      ValueError: unknown name, logits that are no vector, too few samples, a temperature or step not positive, rewards
        that are not [samples].
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; expected one of {', '.join(ESTIMATORS)}")
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be of a floating type, not {logits.dtype}")
    if logits.ndim != 1:
        raise ValueError(f"logits must be a vector of tokens, not of shape {logits.shape} (vmap for a batch)")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if isinstance(step, (int, float)) and not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    problem = _Problem(key, logits.astype(jnp.float32), k, _checked(reward, samples), samples, max_k)
    if name == "reinforce":
        return _reinforce(problem, unordered=False, baseline=False)
    if name in ("reinforce-loo", "reinforce-set-loo"):
        return _reinforce(problem, unordered=name == "reinforce-set-loo", baseline=True)
    if name == "conditional-loo":
        return _conditional(problem)
    if name == "conditional-linear":
        return _linear(problem)
    if name == "simple":
        return _simple(problem)
    if name == "imle":
        return _imle(problem, step)
    return _relaxed(problem, name, temperature)


class _Problem(NamedTuple):
    """The arguments of `estimate` that every estimator takes."""

    key: Array
    logits: Float[Array, " tokens"]
    k: int | Int[Array, ""]
    reward: Reward
    samples: int
    max_k: int | None

    def rows(self, values: Float[Array, " tokens"]) -> Float[Array, "samples tokens"]:
        return jnp.broadcast_to(values, (self.samples, *values.shape))

    def noisy(self, logits: Float[Array, " tokens"]) -> Float[Array, "samples tokens"]:
        return self.rows(logits) + gumbel_noise(self.key, (self.samples, *logits.shape))

    def marginals(self, logits: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        return marginals(logits, self.k, max_k=self.max_k)

    def conditional_masks(self) -> Float[Array, "samples tokens"]:
        """Conditional Bernoulli draws. Only the keys are mapped: the sampler's table is computed once for all."""

        def draw(key: Array) -> Array:
            return conditional_bernoulli(key, self.logits, self.k, max_k=self.max_k).mask

        masks = jax.vmap(draw)(jax.random.split(self.key, self.samples))
        return lax.stop_gradient(masks.astype(jnp.float32))


def _checked(reward: Reward, samples: int) -> Reward:
    def call(masks: Array) -> Array:
        rewards = jnp.asarray(reward(masks))
        if rewards.shape != (samples,):
            raise ValueError(f"reward must return [samples] = ({samples},), not {rewards.shape}")
        return rewards.astype(jnp.float32)

    return call


def _reinforce(problem: _Problem, *, unordered: bool, baseline: bool) -> Estimate:
    """Plackett-Luce score function. One backward pass over all samples, weighted by their advantages."""

    def draw(x: Array) -> tuple[Array, Array]:
        rows = problem.rows(x)
        subset = gumbel_top_k(problem.key, rows, problem.k)
        return (set_log_prob(rows, subset.mask) if unordered else subset.log_prob), subset.mask

    _, pull, mask = jax.vjp(draw, problem.logits, has_aux=True)
    rewards = lax.stop_gradient(problem.reward(mask.astype(jnp.float32)))
    advantage = rewards - leave_one_out(rewards) if baseline else rewards
    return Estimate(pull(advantage / problem.samples)[0], jnp.mean(rewards))


def _conditional(problem: _Problem) -> Estimate:
    """Conditional Bernoulli score function; d log p(S) / dphi = mask less marginals, the same marginals for all."""
    masks = problem.conditional_masks()
    score = masks - problem.rows(problem.marginals(problem.logits))
    rewards = lax.stop_gradient(problem.reward(masks))
    return Estimate((rewards - leave_one_out(rewards)) @ score / problem.samples, jnp.mean(rewards))


def _linear(problem: _Problem) -> Estimate:
    """Conditional Bernoulli score function with a linear control variate, whose expectation SIMPLE has exactly.

    With c_s the mean slope dR/dz at the *other* samples and J the Jacobian of the marginals (the covariance of S),

        g = 1/m sum_s [(R_s - mean_{t != s} R_t - c_s . (z_s - mean_{t != s} z_t)) (z_s - mu) + J c_s],

    unbiased because c_s does not depend on z_s; for a linear reward without variance. The sum of J c_s is SIMPLE's
    estimate, so this is SIMPLE with its bias removed. MuProp expands at the mean; here only exact subsets are read.
    """
    masks = problem.conditional_masks()
    rewards, pull = jax.vjp(problem.reward, masks)
    (slope,) = pull(jnp.ones_like(rewards))
    mu, jacobian = jax.vjp(problem.marginals, problem.logits)
    explained = jnp.sum(leave_one_out(slope, 0) * (masks - leave_one_out(masks, 0)), axis=-1)
    residual = rewards - leave_one_out(rewards) - explained
    gradient = residual @ (masks - problem.rows(mu)) / problem.samples + jacobian(jnp.mean(slope, axis=0))[0]
    return Estimate(gradient, jnp.mean(rewards))


def _simple(problem: _Problem) -> Estimate:
    """SIMPLE (arXiv 2210.01941): exact masks z with the gradient of the marginals; unbiased for a linear reward."""
    masks = problem.conditional_masks()

    def value(x: Array) -> Array:
        soft = problem.rows(problem.marginals(x))
        return jnp.mean(problem.reward(straight_through(masks, soft)))

    mean, gradient = jax.value_and_grad(value)(problem.logits)
    return Estimate(gradient, mean)


def _imle(problem: _Problem, step: float | Array) -> Estimate:
    """I-MLE (arXiv 2106.01798) with the target distribution by perturbation:

        g = 1/m sum_s [topk(phi + g_s + step dR/dz(z_s)) - z_s] / step,   z_s = topk(phi + g_s).

    The perturbation is Gumbel noise, so that z_s is exactly Plackett-Luce; the paper proposes sums of Gamma noise, with
    which z_s is only approximately conditional Bernoulli. Divided by `step`, g has the scale of a gradient; for a
    linear reward its bias vanishes with the step.
    """
    noisy = problem.noisy(problem.logits)
    masks = top_k(noisy, problem.k).mask.astype(jnp.float32)
    rewards, pull = jax.vjp(problem.reward, masks)
    (slope,) = pull(jnp.ones_like(rewards))
    moved = top_k(noisy + step * slope, problem.k).mask.astype(jnp.float32)
    return Estimate(jnp.mean(moved - masks, axis=0) / step, jnp.mean(rewards))


def _relaxed(problem: _Problem, name: str, temperature: float | Array) -> Estimate:
    """Gumbel noise, then the reward of the relaxed mask, or of the hard one with the relaxed one's gradient."""
    method: Literal["threshold", "successive"] = "successive" if name == "relaxed-successive" else "threshold"

    def value(x: Array) -> Array:
        noisy = problem.noisy(x)
        masks = relaxed_top_k(noisy, problem.k, temperature, method=method, max_k=problem.max_k)
        if name == "straight-through":
            masks = straight_through(top_k(noisy, problem.k).mask, masks)
        return jnp.mean(problem.reward(masks))

    mean, gradient = jax.value_and_grad(value)(problem.logits)
    return Estimate(gradient, mean)
