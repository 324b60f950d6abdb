"""Cached greedy decoding against the plain way: the whole sequence anew for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.infer.generate import decode, generate, generate_text, prefill
from rcp.nn.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
NEW = 6


@pytest.fixture(scope="module")
def model():
    graph, params = nnx.split(Transformer(CONFIG, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda x: x * 10, params))


@pytest.fixture(scope="module")
def plain(model):
    """Greedy continuation without a cache, one example at a time, right padding to one length for one compile."""
    forward = jax.jit(lambda tokens, keep: model(tokens, keep=keep))

    def run(row, new=NEW, dropped=()):
        row = list(row)
        for _ in range(new):
            tokens = jnp.array([row + [0] * (24 - len(row))])
            keep = jnp.ones((1, 24), bool).at[0, jnp.array(dropped, int)].set(False)
            row.append(int(forward(tokens, keep)[0, len(row) - 1].argmax()))
        return row[-new:]

    return run


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_unequal_prompts(model, plain, side):
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    tokens, valid = np.zeros((2, 8), np.int32), np.zeros((2, 8), bool)
    for i, row in enumerate(rows):
        where = slice(8 - len(row), 8) if side == "left" else slice(0, len(row))
        tokens[i, where], valid[i, where] = row, True
    out = jax.jit(lambda t, v: generate(model, t, valid=v, max_new=NEW))(tokens, valid)
    assert out.tokens.tolist() == [plain(row) for row in rows]
    assert out.length.tolist() == [NEW, NEW]


def test_each_example_stops_at_its_end_token(model, plain):
    rows = [[3, 1, 4, 1], [2, 7, 1, 8]]
    expected = [plain(row) for row in rows]
    eos = expected[0][2]
    lengths = [row.index(eos) + 1 if eos in row else NEW for row in expected]
    out = jax.jit(lambda t: generate(model, t, max_new=NEW, eos_ids=(eos,), pad_id=31))(jnp.array(rows))
    assert out.length.tolist() == lengths
    for got, row, length in zip(out.tokens.tolist(), expected, lengths, strict=True):
        assert got == row[:length] + [31] * (NEW - length)


def test_dropped_tokens_take_no_room_and_change_what_dropping_changes(model, plain):
    """Prefill with a keep-mask, cut the cache to what is kept, decode: as masked decoding over the whole prompt."""
    row, dropped = [3, 1, 4, 1, 5, 9, 2, 6], [1, 3, 4]
    keep = jnp.ones((1, 8), bool).at[0, jnp.array(dropped)].set(False)

    def run(tokens):
        logits, cache = prefill(model, tokens, capacity=5 + NEW, keep=keep)
        return decode(model, logits, cache, max_new=NEW)

    out, cache = jax.jit(run)(jnp.array([row]))
    assert cache.capacity == 5 + NEW and cache.length.tolist() == [5 + NEW]
    assert out.tokens.tolist() == [plain(row, dropped=dropped)]
    assert out.tokens.tolist() != [plain(row)]


class Letters:
    """Ids are letters of the alphabet; 0 ends."""

    vocab_size, pad_id, eos_id = 32, 0, 0

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)


def test_text_in_text_out(model, plain):
    texts = generate_text(model, Letters(), ["abcde", "xy"], max_new=4, multiple=8)
    for prompt, text in zip(["abcde", "xy"], texts, strict=True):
        ids = plain(Letters().encode(prompt), new=4)
        assert text == Letters().decode(ids[: ids.index(0)] if 0 in ids else ids)
    with pytest.raises(ValueError, match="no empty one"):
        generate_text(model, Letters(), [""])
