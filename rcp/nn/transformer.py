"""A Llama-family decoder with a keep-mask over context tokens. Layers are stacked and run by one `lax.scan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn import cache as kv
from rcp.nn.attention import Past, attention
from rcp.nn.cache import KVCache
from rcp.nn.layers import linear, rms_norm, rope_frequencies, rope_tables, rotate, swiglu, tied_linear
from rcp.nn.layout import first_tokens
from rcp.nn.parameters import MATRICES, TransformerConfig, init_parameters, parameter_shapes
from rcp.nn.stacked import from_slice, sliceable


class Layers(nnx.Module):
    """Holds the stacked parameters of all layers; `Transformer` runs them."""

    def __init__(self, params: Mapping[str, Array]):
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def tree(self) -> dict[str, Any]:
        """All of them by name; a matrix may be a `rcp.nn.layers.LowRank`."""
        return {name: value.get_value() for name, value in vars(self).items() if isinstance(value, nnx.Param)}


class Projected(NamedTuple):
    """What the attention of a layer is given.

    Attributes:
      x: the layer's normalised input.
      q_plain, k_plain: before the rotary embedding, float32.
      q, k, v: queries and keys rotated, and values, in the compute dtype.
    """

    x: Float[Array, "batch tokens model_dim"]
    q_plain: Float[Array, "batch tokens heads dim"]
    k_plain: Float[Array, "batch tokens kv_heads dim"]
    q: Float[Array, "batch tokens heads dim"]
    k: Float[Array, "batch tokens kv_heads dim"]
    v: Float[Array, "batch tokens kv_heads dim"]


class Transformer(nnx.Module):
    """The decoder.

    Args:
      config: the architecture.
      rngs: draws initial parameters (stream "params"), unless `params` is given.
      params: a tree as in `parameter_shapes`; ValueError where it has another.
      dtype: operands of matrix products and of attention, "float32" or "bfloat16". Norms, softmax, the residual stream,
        logits and all accumulation are float32.
      param_dtype: how new parameters are stored; None means `dtype`.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs | None = None,
        params: Mapping[str, Any] | None = None,
        dtype: Any = "float32",
        param_dtype: Any = None,
        remat: bool = False,
    ):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        if params is None:
            if rngs is None:
                raise ValueError("Transformer needs rngs=nnx.Rngs(seed) to draw parameters, or params=")
            params = init_parameters(config, rngs.params(), jnp.dtype(param_dtype or dtype))
        _check_shapes(params, parameter_shapes(config))
        self.embedding = nnx.Param(params["embedding"])
        self.layers = Layers(params["layers"])
        self.norm = nnx.Param(params["norm"])
        self.head = None if config.tie_embeddings else nnx.Param(params["head"])

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        c = self.config
        return kv.empty(c.n_layers, batch, capacity, c.n_kv_heads, c.head_dim, self.dtype)

    def embed(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens dim"]:
        """Token embeddings in float32. Ids outside the vocabulary are clamped."""
        return jnp.take(self.embedding[...], tokens, axis=0, mode="clip").astype(jnp.float32)

    def hidden(
        self,
        tokens: Int[Array, "batch tokens"] | None,
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        valid: Bool[Array, "batch tokens"] | None = None,
        lengths: Int[Array, " batch"] | None = None,
        keep: Array | None = None,
        cache: KVCache | None = None,
        slots: int | None = None,
        start: int = 0,
        stop: int | None = None,
        inputs: Float[Array, "batch tokens dim"] | None = None,
    ) -> Any:
        """Hidden states after layers `start .. stop - 1`.

        Args:
          tokens: ids; None where `inputs` is given.
          positions: rotary positions; default counts the valid tokens from 0 (or from the cache's next position), so
            dropped tokens keep their places. Pass `cumsum(keep) - 1` for repacked positions.
          valid: False on padding, at either end. lengths: in place of it, where padding is at the right end only: the
            number of tokens that are not padding. Needed for the fused kernels of accelerators; states at padding are
            of no use.
          keep: [batch, tokens] or [layers, batch, tokens] in [0, 1], see `rcp.nn.attention`. With a cache it must be
            [batch, tokens] and hard: tokens with keep 0 are not stored, so that later tokens do not see them.
          cache: tokens read before; the new keys and values are appended to it.
          slots: static bound on the tokens read before: later slots of the cache are not looked at. 0: it is empty.
          start, stop: run only these layers; `stop=None` means to the end, and then the final norm is applied.
          inputs: hidden states to start from (the output of `hidden(..., stop=start)`), in place of embeddings.

        Returns:
          h float32 [batch, tokens, dim], or (h, new cache) where a cache was given.
        """
        if (tokens is None) == (inputs is None):
            raise ValueError("give either tokens or inputs")
        h = inputs.astype(jnp.float32) if tokens is None else self.embed(tokens)  # pyright: ignore[reportOptionalMemberAccess]
        if lengths is not None:
            if valid is not None:
                raise ValueError("give either valid or lengths")
            valid = first_tokens(lengths, h.shape[1])
        padding = {"valid": valid} if lengths is None else {"lengths": lengths}
        first = None if cache is None else cache.position
        if positions is None:
            positions = count_positions(h.shape[:2], valid, first)
        rope = rope_tables(positions, self.frequencies())
        last = self.config.n_layers if stop is None else stop
        if cache is not None and (start, last) != (0, self.config.n_layers):
            raise ValueError("a cache belongs to all layers: start and stop cannot be used with it")
        if cache is not None and keep is not None and keep.ndim == 3:
            raise ValueError("a per-layer keep cannot be used with a cache, whose lengths are the same in every layer")

        stacked: dict[str, Any] = {"weights": sliceable(self.layers.tree())}
        if keep is not None and keep.ndim == 3:
            stacked["keep"] = keep
        if (start, last) != (0, self.config.n_layers):
            stacked = jax.tree.map(lambda x: x[start:last], stacked)
        if cache is not None and slots != 0:
            stacked["past"] = (cache.k[:, :, :slots], cache.v[:, :, :slots])

        def body(h, layer):
            past = None
            if cache is not None and "past" in layer:
                k, v = layer["past"]
                past = Past(k, v, cache.length)
            h, k, v = self._layer(layer["weights"], h, rope, padding, layer.get("keep", keep), past)
            return h, ((k, v) if cache is not None else None)

        h, new = lax.scan(jax.checkpoint(body) if self.remat else body, h, stacked)
        if stop is None:
            h = rms_norm(h, self.norm[...], self.config.norm_eps)
        if cache is None or new is None:
            return h
        stored = valid if keep is None else (keep > 0 if valid is None else valid & (keep > 0))
        seen = jnp.where(True if valid is None else valid, positions, -1).max(axis=1) + 1
        last = jnp.maximum(seen, cache.position)
        return h, kv.append(cache, new[0], new[1], stored, last, empty=slots == 0)

    def logits(self, h: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Next-token logits in float32."""
        if self.head is None:
            return tied_linear(h, self.embedding[...], self.dtype)
        return linear(h, self.head[...], self.dtype)

    def __call__(self, tokens: Int[Array, "batch tokens"], **options: Any) -> Any:
        """Logits [batch, tokens, vocab], or (logits, cache); options as in `hidden`."""
        h = self.hidden(tokens, **options)
        return (self.logits(h[0]), h[1]) if isinstance(h, tuple) else self.logits(h)

    def frequencies(self) -> Float[Array, " half"]:
        """Of the rotary embedding."""
        c = self.config
        return rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)

    def _layer(self, w: Mapping[str, Any], h: Array, rope, padding: Mapping[str, Any], keep, past):
        w = readable(w)
        p = self.project(w, h, rope)
        mixed = attention(p.q, p.k, p.v, **padding, keep=keep, past=past)
        return self.finish(w, h, mixed), p.k, p.v

    def project(self, w: Mapping[str, Any], h: Float[Array, "batch tokens model_dim"], rope: Any) -> Projected:
        """The first half of a layer, with its parameters as `readable` gives them."""
        c, dtype = self.config, self.dtype
        x = rms_norm(h, w["attention_norm"], c.norm_eps)

        def project(name: str, heads: int) -> Array:
            y = linear(x, w[name], dtype)
            if c.qkv_bias:
                y = y + w[name + "_bias"].astype(jnp.float32)[None, None, :]
            return y.reshape(*y.shape[:2], heads, c.head_dim)

        q, k, v = project("q", c.n_heads), project("k", c.n_kv_heads), project("v", c.n_kv_heads)
        if c.qk_norm:
            q, k = rms_norm(q, w["q_norm"], c.norm_eps), rms_norm(k, w["k_norm"], c.norm_eps)
        return Projected(x, q, k, *(x.astype(dtype) for x in (rotate(q, *rope), rotate(k, *rope), v)))

    def finish(
        self,
        w: Mapping[str, Any],
        h: Float[Array, "batch tokens model_dim"],
        mixed: Float[Array, "batch tokens heads dim"],
    ) -> Float[Array, "batch tokens model_dim"]:
        """The second half of a layer, given what its attention mixed."""
        c, dtype = self.config, self.dtype
        h = h + linear(mixed.reshape(*mixed.shape[:2], -1), w["o"], dtype)
        x = rms_norm(h, w["mlp_norm"], c.norm_eps)
        return h + swiglu(x, w["gate"], w["up"], w["down"], dtype)


def readable(w: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's parameters out of a scan over `sliceable` ones: norms and biases as arrays, matrices for `linear`."""
    return {name: value if name in MATRICES else from_slice(value) for name, value in w.items()}


def _check_shapes(params: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    found, expected = jax.tree.map(jnp.shape, dict(params)), dict(shapes)
    if found != expected:
        raise ValueError(f"parameters of shapes {found}; the configuration asks for {expected}")


def count_positions(shape, valid, first) -> Int[Array, "batch tokens"]:
    """0, 1, 2, ... over the valid tokens of each row, starting at `first`."""
    if valid is None:
        count = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    else:
        count = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    return count if first is None else count + first[:, None]
