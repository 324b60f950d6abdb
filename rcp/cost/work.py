"""Operations and bytes moved of the decoder: a pass, reading a prompt, one decoded token, a training step.

Symbols: B examples of T tokens, L layers, d = d_model, f = d_ff, V = vocab_size, q = n_heads head_dim and
kv = n_kv_heads head_dim, P the pairs (query, key) that a head multiplies. A matrix product of [m, k] and [k, n] is
2 m k n floating-point operations (FLOPs). Then the products of one pass are

    L (2 B T (d (q + 2 kv) + q d + 3 d f) + 4 B P q) + 2 B (places with logits) d V     FLOPs,

the second term being scores and weighted values. P is what `rcp.nn.attention` really multiplies: T^2 up to
`DENSE_LIMIT` tokens, beyond it blocks of queries against the keys up to the end of their group (a little over half of
T^2), and for each query every slot of a cache, filled or not. Padding counts as tokens. An accelerator's fused kernel
(`rcp.nn.fused`) multiplies about T^2 / 2; this is not modelled.

Elementwise operations are counted as XLA does, one an element and operation, exponentials and roots not at all. They
are a per cent or two of the products of a usual model and are given apart.

Bytes are what memory must at least deliver or take: every weight once a pass, keys and values once a block of queries,
the cache's new slots, and operands and results of every product. Scores are taken to stay in the chip's caches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from rcp.nn.attention import BLOCK, DENSE_LIMIT, MAX_GROUPS, REMATERIALISE
from rcp.nn.parameters import MATRICES, TransformerConfig, parameter_shapes
from rcp.nn.reader import CHUNK

FLOAT32 = 4  # bytes of a number
SIZES = {"float32": 4, "bfloat16": 2}
OPERATIONS_A_SCORE = 6  # scaled, masked twice, shifted; compared for the maximum, added for the sum
OPERATIONS_A_NORM = 4  # an element of an RMSNorm: squared, added, times the root, times the scale
OPERATIONS_A_ROTATION = 3  # an element of a rotary embedding: two products and their sum


@dataclass(frozen=True)
class Work:
    """Attributes:
    products: FLOPs of matrix products. elementwise: all other FLOPs. bytes: moved between memory and chip, at least.
    """

    products: float
    elementwise: float
    bytes: float

    @property
    def flops(self) -> float:
        return self.products + self.elementwise

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.elementwise + other.elementwise, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.elementwise * times, self.bytes * times)


NOTHING = Work(0, 0, 0)


@dataclass(frozen=True)
class Stored:
    """Bytes a number takes: `params` as weights are stored, `compute` as an operand and in the KV cache.

    `int8_weights`: tokens are decoded by weights in 8 bits (`rcp.nn.eight_bit`).
    """

    params: int = FLOAT32
    compute: int = FLOAT32
    int8_weights: bool = False


SINGLE = Stored()  # everything float32


def layer_parameters(shape: TransformerConfig) -> int:
    """Numbers in the parameters of one layer."""
    return sum(prod(of_all[1:]) for of_all in parameter_shapes(shape)["layers"].values())


def decoded_by(shape: TransformerConfig, stored: Stored = SINGLE) -> int:
    """Bytes of the layers' weights, and of the head's, as decoding reads them.

    In 8 bits a matrix takes a byte a weight and a float32 scale an output; norms and biases stay as they are stored.
    """
    c = shape
    count, head = c.n_layers * layer_parameters(c), c.d_model * c.vocab_size
    if not stored.int8_weights:
        return (count + head) * stored.params
    matrices = [of_all for name, of_all in parameter_shapes(c)["layers"].items() if name in MATRICES]
    weights = sum(map(prod, matrices))
    scales = sum(layers * outputs for layers, _, outputs in matrices) + c.vocab_size
    return weights + head + scales * FLOAT32 + (count - weights) * stored.params


def blocks_of(tokens: int) -> list[tuple[int, int, int]]:
    """(queries, keys, blocks) of each group of query blocks that `rcp.nn.attention` makes of a sequence."""
    if tokens <= DENSE_LIMIT:
        return [(tokens, tokens, 1)]
    blocks = -(-tokens // BLOCK)
    per_group = -(-blocks // MAX_GROUPS)
    groups = []
    for first in range(0, blocks, per_group):
        start, end = first * BLOCK, min((first + per_group) * BLOCK, tokens)
        groups.append((end - start, end, -(-(end - start) // BLOCK)))
    return groups


def attended(tokens: int) -> int:
    """Pairs (query, key) that one head of one example multiplies within a sequence."""
    return sum(queries * keys for queries, keys, _ in blocks_of(tokens))


def forward(
    shape: TransformerConfig,
    tokens: int,
    *,
    batch: int = 1,
    past: int = 0,
    layers: int | None = None,
    logits: int = 0,
    stored: Stored = SINGLE,
) -> Work:
    """One pass over `tokens` of each of `batch` examples.

    Args:
      past: slots of the cache that every query is multiplied with too.
      layers: how many of them run, from the first; None means all, and then the final norm.
      logits: places of each example that get logits over the vocabulary.
    """
    c, rows = shape, batch * tokens
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    pairs = batch * c.n_heads * (attended(tokens) + tokens * past)
    depth = c.n_layers if layers is None else layers
    matrices = c.d_model * (q + 2 * kv) + q * c.d_model + 3 * c.d_model * c.d_ff
    products = depth * (2 * rows * matrices + 4 * pairs * c.head_dim) + 2 * batch * logits * c.d_model * c.vocab_size

    operations = 2 * (OPERATIONS_A_NORM + 1) * c.d_model + OPERATIONS_A_ROTATION * (q + kv) + 2 * c.d_ff
    operations += (q + 2 * kv) * c.qkv_bias + OPERATIONS_A_NORM * (q + kv) * c.qk_norm
    elementwise = depth * (rows * operations + OPERATIONS_A_SCORE * pairs)
    elementwise += OPERATIONS_A_NORM * rows * c.d_model * (layers is None)

    weights = depth * layer_parameters(c) + (c.d_model * c.vocab_size if logits else 0) + rows * c.d_model
    operands = depth * rows * (5 * c.d_model + q + c.d_ff) + batch * logits * c.d_model
    results = (
        depth * rows * (2 * c.d_model + q + 2 * kv + 2 * c.d_ff) + rows * c.d_model + batch * logits * c.vocab_size
    )
    read = sum(blocks * (keys + past) for _, keys, blocks in blocks_of(tokens))
    cached = depth * batch * 2 * kv * (read + (tokens if past else 0))
    moved = weights * stored.params + (operands + cached) * stored.compute + results * FLOAT32
    return Work(products, elementwise, moved)


def prefill(shape: TransformerConfig, tokens: int, *, batch: int = 1, stored: Stored = SINGLE) -> Work:
    """Reading prompts into a cache (`rcp.infer.generate.prefill`), the logits after their last tokens included."""
    written = 2 * shape.n_layers * batch * tokens * shape.n_kv_heads * shape.head_dim * stored.compute
    return forward(shape, tokens, batch=batch, logits=1, stored=stored) + Work(0, 0, written)


def decode_step(shape: TransformerConfig, capacity: int, *, batch: int = 1, stored: Stored = SINGLE) -> Work:
    """One more token of each example: all slots of the cache are read, filled or not."""
    step = forward(shape, 1, batch=batch, past=capacity - 1, logits=1, stored=stored)
    return step + Work(0, 0, decoded_by(shape, stored) - decoded_by(shape, replace(stored, int8_weights=False)))


def train_step(
    shape: TransformerConfig,
    tokens: int,
    *,
    batch: int,
    answer: int,
    remat: bool = False,
    stored: Stored = SINGLE,
) -> Work:
    """A step that trains every parameter with AdamW on the answers of `batch` prompts (`rcp.train.reader_step`).

    The backward pass has two products for each of the forward pass. Computed once more are: scores and weighted values
    past `REMATERIALISE` tokens; logits where there are more than `CHUNK`; with `remat` every layer but for its last
    product. AdamW reads four numbers a parameter and writes three; about 12 operations each, and 3 for the clipping by
    global norm.

    Args:
      answer: places of each prompt that get logits (`data.max_answer`).
    """
    body = forward(shape, tokens, batch=batch, stored=stored)
    places = batch * answer
    padded = places if places <= CHUNK else -(-places // CHUNK) * CHUNK
    head = forward(shape, 0, batch=padded, logits=1, layers=0, stored=stored)
    pairs = batch * shape.n_heads * attended(tokens) * shape.n_layers
    attention = Work(4 * pairs * shape.head_dim, OPERATIONS_A_SCORE * pairs, 0)
    work = body * 3 + head * (3 if places <= CHUNK else 4)
    if remat:
        unneeded = 2 * batch * tokens * shape.d_ff * shape.d_model * shape.n_layers
        work = work + body + Work(-unneeded, 0, 0)
    if tokens > REMATERIALISE:
        work = work + attention
    count = parameters(shape)
    return work + Work(0, 15 * count, 7 * count * stored.params)


def parameters(shape: TransformerConfig) -> int:
    """Numbers in all parameters; a tied head counts once."""
    shapes = parameter_shapes(shape)
    return sum(prod(x) for name, x in shapes.items() if name != "layers") + shape.n_layers * layer_parameters(shape)
