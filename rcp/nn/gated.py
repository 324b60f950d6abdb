"""Reading whole sequences with dynamic context pruning: every token may drop earlier ones for good.

The layers do what `Transformer.hidden` has them do, but for the weight I[n, j] (`rcp.nn.interaction`) in their
attention. Queries are taken in blocks, so that no array has tokens * tokens scores a head; what is carried from block
to block is I of the last query. In training alpha is a number; with None, the step function, this is what
`rcp.eviction.dynamic` does with entries that really leave the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.attention import BLOCK, MAX_GROUPS, REMATERIALISE, attend_block
from rcp.nn.interaction import Interaction, earlier, interaction_scores, project, survival
from rcp.nn.layers import rms_norm, rope_tables
from rcp.nn.layout import first_tokens
from rcp.nn.stacked import sliceable
from rcp.nn.transformer import Projected, Transformer, count_positions, readable


class GatedRead(NamedTuple):
    """Attributes:
    h: hidden states after the last norm. At padding of no use.
    kept: the mean of I over the pairs of a token and an earlier one, a layer and example.
    """

    h: Float[Array, "batch tokens model_dim"]
    kept: Float[Array, "layers batch"]


def read_gated(
    model: Transformer,
    interaction: Interaction,
    tokens: Int[Array, "batch tokens"],
    *,
    alpha: Float[Array, ""] | float | None,
    lengths: Int[Array, " batch"] | None = None,
    block: int = BLOCK,
) -> GatedRead:
    """Hidden states under the gates, and how much of the past is left.

    The mean leaves out the last token's row, as published: nothing is predicted from it. Departure: it is over pairs of
    a token and an *earlier* one, where the authors' code also counts each token beside itself and beside later ones.
    Those entries are 1 throughout: of T tokens their mean is (T + 2) / 2T + (T - 2) / 2T times this one, and a weight
    gamma of theirs is about gamma / 2 of this.

    Args:
      alpha: of the alpha-sigmoid; None for the step function.
      lengths: tokens that are not padding, which is at the right end.
      block: queries a block.
    """
    h = model.embed(tokens)
    valid = None if lengths is None else first_tokens(lengths, tokens.shape[1])
    rope = rope_tables(count_positions(tokens.shape, valid, None), model.frequencies())
    stacked = {"weights": sliceable(model.layers.tree()), "gates": interaction}

    def layer(h: Array, own: dict[str, Any]) -> tuple[Array, Array]:
        w = readable(own["weights"])
        p = model.project(w, h, rope)
        mixed, kept = gated_attention(p, own["gates"], alpha, valid, block)
        return model.finish(w, h, mixed), kept

    h, kept = lax.scan(jax.checkpoint(layer) if model.remat else layer, h, stacked)
    asking = (jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32) if lengths is None else lengths) - 1
    pairs = jnp.maximum(asking * (asking - 1) // 2, 1).astype(jnp.float32)
    return GatedRead(rms_norm(h, model.norm[...], model.config.norm_eps), kept / pairs[None])


def gated_attention(
    p: Projected,
    gates: Interaction,
    alpha: Float[Array, ""] | float | None,
    valid: Bool[Array, "batch tokens"] | None,
    block: int = BLOCK,
) -> tuple[Float[Array, "batch tokens heads dim"], Float[Array, " batch"]]:
    """What a layer's attention mixes under I, and the sum of I over the pairs that count."""
    batch, tokens, heads, dim = p.q.shape
    q = p.q.reshape(batch, tokens, p.k.shape[2], heads // p.k.shape[2], dim)
    asks, shows = project(gates, p.x)
    block = min(max(block, -(-tokens // MAX_GROUPS)), tokens)
    there = jnp.ones((batch, tokens), bool) if valid is None else valid
    asking = jnp.pad(there[:, 1:], ((0, 0), (0, 1)))  # all but the last token

    def attend(start: int, end: int, q: Array, asks: Array, k: Array, v: Array, shows: Array, alive: Array):
        scores = interaction_scores(asks, shows, gates["beta"])
        left = survival(alive, scores, alpha, start=start, queries=there[:, start:end])
        mixed = attend_block(q, (k, v, None if valid is None else valid[:, :end], left), (), jnp.int32(start))
        counted = earlier(scores.shape[1:], start) & asking[:, start:end, None]
        return mixed, left[:, -1], jnp.sum(jnp.where(counted, left, 0.0), axis=(1, 2))

    attend = jax.checkpoint(attend, static_argnums=(0, 1)) if tokens > REMATERIALISE else attend
    outputs, alive, kept = [], jnp.ones((batch, 0), jnp.float32), jnp.zeros((batch,), jnp.float32)
    for start in range(0, tokens, block):
        end = min(start + block, tokens)
        alive = jnp.pad(alive, ((0, 0), (0, end - start)), constant_values=1.0)
        part = (q[:, start:end], asks[:, start:end], p.k[:, :end], p.v[:, :end], shows[:, :end])
        mixed, alive, more = attend(start, end, *part, alive)
        outputs.append(mixed)
        kept = kept + more
    return jnp.concatenate(outputs, axis=1).reshape(batch, tokens, heads, dim), kept
