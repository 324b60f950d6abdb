"""Fused causal attention of accelerators: cuDNN's on GPU, a Pallas kernel on TPU. `rcp.nn.attention` chooses.

For what needs neither a soft keep-mask nor a cache: reading whole or compacted prompts, whose padding is at the right
end. There a causal mask alone keeps real tokens from seeing padding; lengths only save work.

Tests compare the code around the kernels with the blocked attention on CPU (`implementation="xla"`, and the Pallas
kernel interpreted). Neither kernel was ever run on a GPU or TPU.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.nn.layout import first_tokens

Implementation = Literal["cudnn", "xla", "pallas"]
HEAD_DIMS = (64, 128)
PALLAS_BLOCK = 128  # tokens must be a multiple: the kernel's default block sizes


def implementation_for(q: Float[Array, "batch tokens heads dim"]) -> Implementation | None:
    """The kernel for such queries on this backend, or None.

    Only for operands of 16 bits (cuDNN takes no others) and head dimensions that both kernels were written for. A
    Pallas call cannot be split over devices by the compiler: over a mesh it is not used, under `pmap` it is.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] not in HEAD_DIMS:
        return None
    backend = jax.default_backend()
    if backend == "gpu":
        return "cudnn"
    whole_blocks = q.shape[1] % PALLAS_BLOCK == 0
    return "pallas" if backend == "tpu" and q.dtype == jnp.bfloat16 and whole_blocks and one_device() else None


def one_device() -> bool:
    """Whether what is traced is known to run on one device, so that no axis of it is split by the compiler."""
    return jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)


def fused_attention(
    q: Float[Array, "batch tokens heads dim"],
    k: Float[Array, "batch tokens kv_heads dim"],
    v: Float[Array, "batch tokens kv_heads dim"],
    lengths: Int[Array, " batch"] | None,
    implementation: Implementation,
) -> Float[Array, "batch tokens heads dim"]:
    """Causal attention, float32; 0 at places from `lengths` on (None: there is no padding)."""
    if implementation == "pallas":
        out = _pallas(q, k, v)
    else:
        seen = None if lengths is None else jnp.maximum(lengths.astype(jnp.int32), 1)  # no softmax over nothing
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            query_seq_lengths=seen,
            key_value_seq_lengths=seen,
            implementation=implementation,
        )
    out = out.astype(jnp.float32)
    if lengths is None:
        return out
    there = first_tokens(lengths, q.shape[1])
    return jnp.where(there[..., None, None], out, 0.0)  # whatever the kernel left there must not reach the next layer


def _pallas(q: Array, k: Array, v: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))  # the kernel knows no grouped queries
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(flash_attention(q, k, v, causal=True, sm_scale=q.shape[-1] ** -0.5), 1, 2)
