"""A few tokens a row behind a cache: the layers one by one, keys and values laid out as their products read them.

`step` computes what `rcp.nn.chunk.read_chunk` does for a short chunk, in another order of summation. In a scan over
stacked layers XLA copies each layer's weights and cache before it uses them, and on CPU it transposes keys and values
as well: several times the bytes that a decoded token has to read. Here weights are arrays of their own, and what the
cache holds before decoding is transposed once and then only read. New tokens go into the same slots in every row: a row
that has ended fills slots that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.attention import MATRIX_PRODUCT, MAX_EXPONENT
from rcp.nn.cache import Context, Entries, KVCache
from rcp.nn.eight_bit import EightBit, eight_bit, linear_8bit, product_8bit
from rcp.nn.layers import LowRank, rms_norm, rope_tables
from rcp.nn.parameters import MATRICES
from rcp.nn.transformer import Transformer

ROWS_BY_COLUMNS = (((2,), (2,)), ((0,), (0,)))  # both operands are contracted over their last axis


class DecodingWeights(NamedTuple):
    """A model's parameters as decoding reads them.

    Attributes:
      layers: the parameters of each layer.
      head: what makes logits of hidden states, where it is kept in 8 bits; None: the model's own.
    """

    layers: tuple[dict[str, Any], ...]
    head: EightBit | None = None


class Laid(NamedTuple):
    """Entries of one layer; `rows` are the key-value heads of all examples.

    Attributes:
      there: slots in use. keep: as in `Entries`; None means 1.
      scales: of k and of v, which are int8 then.
    """

    k: Float[Array, "rows dim slots"]
    v: Float[Array, "rows slots dim"]
    there: Bool[Array, "rows 1 slots"]
    keep: Float[Array, "rows 1 slots"] | None = None
    scales: tuple[Float[Array, "rows 1 slots"], Float[Array, "rows 1 slots"]] | None = None


Past = tuple[tuple[Laid, ...], ...]
"""For each layer the parts of what comes before the new tokens."""

New = tuple[tuple[Float[Array, "rows new dim"], Float[Array, "rows new dim"]], ...]
"""For each layer the keys and values of the new tokens, a slot each."""


def unstacked(model: Transformer, *, int8: bool = False) -> DecodingWeights:
    """Each layer's parameters as arrays of their own: a copy of them all, to be made once for many decodings.

    `int8` rounds the matrices to 8 bits, an output's largest weight being 127, those of a low-rank update excepted.
    """
    tree = model.layers.tree()
    layers = [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(model.config.n_layers)]
    if not int8:
        return DecodingWeights(tuple(layers))
    layers = tuple({name: _in_8_bits(w) if name in MATRICES else w for name, w in layer.items()} for layer in layers)
    return DecodingWeights(layers, eight_bit(model.embedding[...] if model.head is None else model.head[...].T))


def _in_8_bits(weight: Array | LowRank) -> EightBit | LowRank:
    if isinstance(weight, LowRank):
        return weight._replace(weight=_in_8_bits(weight.weight))
    return eight_bit(weight.T)


def logits_of(
    model: Transformer, weights: DecodingWeights, h: Float[Array, "*batch dim"]
) -> Float[Array, "*batch vocab"]:
    """As `Transformer.logits`."""
    return model.logits(h) if weights.head is None else linear_8bit(h, weights.head, model.dtype)


def laid_cache(cache: KVCache, slots: int) -> Past:
    """The first `slots` slots of a cache."""
    layers, batch, _, heads, _ = cache.k.shape
    if not slots:
        return ((),) * layers
    length = jnp.broadcast_to(cache.length[:, None], (batch, heads))
    return tuple((_laid(cache.k[i, :, :slots], cache.v[i, :, :slots], length),) for i in range(layers))


def laid_context(context: Context) -> Past:
    return tuple((part,) for run in context.runs for part in _laid_run(run))


def joined(first: Past, second: Past) -> Past:
    """Two parts of what comes before the new tokens."""
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _laid_run(run: Entries) -> list[Laid]:
    def of(layer: int) -> Laid:
        keep, scales = (jax.tree.map(lambda x: x[layer], x) for x in (run.keep, run.scales))
        return _laid(run.k[layer], run.v[layer], run.length[layer], keep, scales)

    return [of(layer) for layer in range(run.k.shape[0])]


def _laid(k: Array, v: Array, length: Int[Array, "batch kv_heads"], keep=None, scales=None) -> Laid:
    """From [batch, slots, kv_heads, dim]."""
    batch, slots, heads, dim = k.shape
    rows = batch * heads

    def beside(x: Array) -> Array:
        return jnp.moveaxis(x.astype(jnp.float32), 2, 1).reshape(rows, 1, slots)

    return Laid(
        k.transpose(0, 2, 3, 1).reshape(rows, dim, slots),
        v.transpose(0, 2, 1, 3).reshape(rows, slots, dim),
        jnp.arange(slots)[None, None] < length.reshape(rows, 1, 1),
        None if keep is None else beside(keep),
        None if scales is None else (beside(scales[0]), beside(scales[1])),
    )


def room(model: Transformer, batch: int, new: int) -> New:
    """Empty slots for `new` tokens a row."""
    c = model.config
    empty = jnp.zeros((batch * c.n_kv_heads, new, c.head_dim), model.dtype)
    return ((empty, empty),) * c.n_layers


def as_tokens(new: New, batch: int) -> tuple[Array, Array]:
    """Keys and values [layers, batch, tokens, kv_heads, dim], as a cache has them."""

    def stacked(parts: Sequence[Array]) -> Array:
        x = jnp.stack(parts)
        return x.reshape(len(parts), batch, -1, *x.shape[2:]).swapaxes(2, 3)

    keys, values = zip(*new)
    return stacked(keys), stacked(values)


def step(
    model: Transformer,
    weights: DecodingWeights,
    past: Past,
    new: New,
    number: Int[Array, ""] | int,
    tokens: Int[Array, "batch tokens"],
    position: Int[Array, " batch"],
) -> tuple[Float[Array, "batch tokens dim"], New]:
    """Hidden states after the last norm of the new tokens from the `number`-th on, which are put among the new ones.

    Args:
      position: rotary, of the first of the tokens.
    """
    count = tokens.shape[1]
    h = model.embed(tokens)
    rope = rope_tables(position[:, None] + jnp.arange(count, dtype=jnp.int32)[None], model.frequencies())
    written = []
    for w, parts, (k, v) in zip(weights.layers, past, new, strict=True):
        p = model.project(w, h, rope)
        k, v = (lax.dynamic_update_slice(x, _by_row(y), (0, number, 0)) for x, y in ((k, p.k), (v, p.v)))
        h = model.finish(w, h, _attend(p.q, parts, k, v, number))
        written.append((k, v))
    return rms_norm(h, model.norm[...], model.config.norm_eps), tuple(written)


def _by_row(x: Float[Array, "batch tokens kv_heads dim"]) -> Float[Array, "rows tokens dim"]:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _attend(q: Float[Array, "batch tokens heads dim"], past: tuple[Laid, ...], k: Array, v: Array, number) -> Array:
    """As `rcp.nn.attention.attention` with the new tokens, the last of them the queries' own, behind the past."""
    batch, count, heads, dim = q.shape
    rows, slots = k.shape[:2]
    # The queries of a row: of each token those of the group, one token's behind the other's.
    queries = q.reshape(batch, count, rows // batch, -1, dim).swapaxes(1, 2).reshape(rows, -1, dim)
    last = number + jnp.arange(count).repeat(queries.shape[1] // count)
    scores = lax.dot_general(queries, k, ROWS_BY_COLUMNS, preferred_element_type=jnp.float32) * dim**-0.5
    own = jnp.where(jnp.arange(slots)[None, None] <= last[None, :, None], scores, -jnp.inf)
    earlier = [_scores(queries, part) for part in past]
    top = jnp.max(own, axis=-1, keepdims=True)
    for part, found in zip(past, earlier):
        counted = found if part.keep is None else jnp.where(part.keep > 0, found, -jnp.inf)
        top = jnp.maximum(top, jnp.max(counted, axis=-1, keepdims=True))
    mass = jnp.exp(own - top)
    total = jnp.sum(mass, axis=-1, keepdims=True)
    out = lax.dot_general(mass.astype(v.dtype), v, MATRIX_PRODUCT, preferred_element_type=jnp.float32)
    for part, found in zip(past, earlier):
        if part.keep is None:
            mass = jnp.exp(found - top)
        else:
            mass = part.keep * jnp.exp(jnp.minimum(found - top, MAX_EXPONENT))
        total = total + jnp.sum(mass, axis=-1, keepdims=True)
        out = out + _values(mass, part, v.dtype)
    out = (out / total).reshape(batch, rows // batch, count, -1, dim)
    return out.swapaxes(1, 2).reshape(batch, count, heads, dim)


def _scores(queries: Float[Array, "rows group dim"], part: Laid) -> Float[Array, "rows group slots"]:
    if part.scales is None:
        scores = lax.dot_general(queries, part.k, MATRIX_PRODUCT, preferred_element_type=jnp.float32)
    else:
        scores = product_8bit(queries, part.k, inner=1) * part.scales[0]
    return jnp.where(part.there, scores * queries.shape[-1] ** -0.5, -jnp.inf)


def _values(mass: Float[Array, "rows group slots"], part: Laid, dtype: Any) -> Float[Array, "rows group dim"]:
    if part.scales is None:
        return lax.dot_general(mass.astype(part.v.dtype), part.v, MATRIX_PRODUCT, preferred_element_type=jnp.float32)
    return product_8bit((mass * part.scales[1]).astype(dtype), part.v, inner=1)
