"""Keeping exactly k of n tokens: samplers, relaxations, log-probabilities, marginals.

Two distributions live here. *Plackett-Luce* (`gumbel_top_k`, `log_prob`, `set_log_prob`, `entropy`) draws one token
after another; *conditional Bernoulli* (`conditional_bernoulli`, `conditional_bernoulli_log_prob`, `marginals`,
`conditional_bernoulli_entropy`) draws a set with probability proportional to exp(sum of its logits). They differ for
k > 1: no estimator may pair the sample of one with the numbers of the other. `estimate` has the estimators of
d/dphi E[R(S)], each with its own distribution (`ESTIMATORS`).

A third, *independent Bernoulli* (`bernoulli`, `bernoulli_log_prob`, `bernoulli_entropy`, `bernoulli_mode`), has no k:
it is what CoT-Influx samples from.

Everywhere: the last axis is tokens and the others are batch; logits of any floating type are computed in float32;
  `+inf` is always kept, `-inf` or not valid never; k is an int or a traced integer array.
"""

from rcp.sampling.bernoulli import bernoulli, bernoulli_entropy, bernoulli_log_prob, bernoulli_mode
from rcp.sampling.conditional import (
    conditional_bernoulli,
    conditional_bernoulli_entropy,
    conditional_bernoulli_log_prob,
    marginals,
)
from rcp.sampling.counts import count_of_rate, floor_of_share
from rcp.sampling.estimators import ESTIMATORS, Estimate, estimate
from rcp.sampling.gumbel import entropy, gumbel_top_k, log_prob, top_k
from rcp.sampling.order import gumbel_noise
from rcp.sampling.relaxed import relaxed_top_k, straight_through
from rcp.sampling.subset import Subset, leave_one_out, set_log_prob

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Subset",
    "bernoulli",
    "bernoulli_entropy",
    "bernoulli_log_prob",
    "bernoulli_mode",
    "conditional_bernoulli",
    "conditional_bernoulli_entropy",
    "conditional_bernoulli_log_prob",
    "count_of_rate",
    "entropy",
    "estimate",
    "floor_of_share",
    "gumbel_noise",
    "gumbel_top_k",
    "leave_one_out",
    "log_prob",
    "marginals",
    "relaxed_top_k",
    "set_log_prob",
    "straight_through",
    "top_k",
]
