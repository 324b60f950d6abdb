"""Which earlier tokens a token drops: dynamic context pruning's interaction (Anagnostidis et al., arXiv 2305.15805).

In each layer two small bias-free projections of its normalised input x give

    s[n, j] = (W_q x_n) . (W_k x_j) / sqrt(r) + beta,      gate[n, j] = alpha-sigmoid(s[n, j]) for n > j, 1 for n = j,
    I[n, j] = prod over m = j + 1 .. n of gate[m, j]:      once dropped, a token is dropped for all that come later.

I weighs the attention of every head of the layer, which is to add log I to the attention logits.

Departures. I is a running product, not the exponential of a sum of logarithms with a small number added: a gate that is
0 has no finite logarithm, while the product and its gradient (an associative scan, which never divides) are exact. x is
scaled to unit mean square: GPT-2's layer norms leave about that, but the gains of other models do not (.05 to .4 in
SmolLM2-135M), and with s all but constant every gate is open, without gradient, once 1 / (alpha - 1) is below beta. The
projections have no position of their own, as published, where however the learned positions of GPT-2 were part of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.alpha_sigmoid import alpha_sigmoid
from rcp.nn.layers import linear

Interaction = dict[str, Any]
"""Parameters: "q" and "k" [layers, model_dim, rank], "beta" [layers], float32. Within a layer without that axis."""


class Projections(NamedTuple):
    """What tokens ask of earlier ones, and what they show to later ones."""

    q: Float[Array, "batch tokens rank"]
    k: Float[Array, "batch tokens rank"]


def init_interaction(layers: int, model_dim: int, rank: int, beta: float, key: Array) -> Interaction:
    """Normal projections of deviation 1 / sqrt(model_dim), so that s is beta plus noise of order 1 at first."""
    first, second = jax.random.split(key)
    shape, scale = (layers, model_dim, rank), model_dim**-0.5
    return {
        "q": scale * jax.random.normal(first, shape),
        "k": scale * jax.random.normal(second, shape),
        "beta": jnp.full((layers,), beta, jnp.float32),
    }


def project(layer: Interaction, x: Float[Array, "batch tokens model_dim"]) -> Projections:
    """Of one layer, from its normalised input. float32: a decision must not hang on a rounding."""
    x = x.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return Projections(linear(x, layer["q"], jnp.dtype("float32")), linear(x, layer["k"], jnp.dtype("float32")))


def interaction_scores(
    q: Float[Array, "batch queries rank"], k: Float[Array, "batch keys rank"], beta: Float[Array, ""]
) -> Float[Array, "batch queries keys"]:
    """s[n, j]; the token n keeps the earlier token j where it is above 0."""
    product = lax.dot_general(q, k, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    return product * q.shape[-1] ** -0.5 + beta


def survival(
    alive: Float[Array, "batch keys"],
    scores: Float[Array, "batch queries keys"],
    alpha: Float[Array, ""] | float | None,
    *,
    start: Int[Array, ""] | int,
    queries: Bool[Array, "batch queries"] | None = None,
) -> Float[Array, "batch queries keys"]:
    """I of consecutive queries, given I of the query before them.

    Args:
      alive: I before the first of these queries; 1 for keys that are not earlier than that.
      alpha: None is the step function: what is left is exactly 0 or 1.
      start: number of the first query among the keys.
      queries: False at padding, which drops nothing.
    """
    gate = (scores > 0).astype(jnp.float32) if alpha is None else alpha_sigmoid(scores, alpha)
    drops = earlier(scores.shape[1:], start)
    if queries is not None:
        drops = drops & queries[..., None]
    return alive[:, None] * jnp.cumprod(jnp.where(drops, gate, 1.0), axis=1)


def earlier(shape: tuple[int, ...], start: Int[Array, ""] | int) -> Bool[Array, "1 queries keys"]:
    """Which keys come before each of the queries `start ..`."""
    queries, keys = shape
    return jnp.arange(keys)[None, None, :] < start + jnp.arange(queries)[None, :, None]
