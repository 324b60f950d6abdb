"""Reading in chunks is reading at once, and no array is prompt times prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import POLICIES, ExpectedAttention, KVzip, Needs, Repeat, SinksWindow, SnapKV, all_needs
from rcp.eviction.allotment import GLOBAL, Allotment
from rcp.eviction.prompt import Eviction, choose, context_entries, read_prompt
from tests.eviction.small import HEADS, LAYERS, LENGTHS, VOCABULARY, WIDTH, prompts, small_model

REPEAT = Repeat(first=(3, 4), later=(5,), chunk=16)
NEEDS = all_needs(*(policy().needs for policy in POLICIES.values()))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize(("side", "chunk"), [("right", 5), ("left", 7), ("right", 24)])
def test_chunked_reading_is_reading_at_once(model, side, chunk):
    tokens, valid = prompts(side)
    read = jax.jit(lambda t, v: read_prompt(model, t, valid=v, chunk=chunk))(tokens, valid)
    cache = model.new_cache(2, WIDTH)
    h, whole = jax.jit(lambda t, v: model.hidden(t, valid=v, cache=cache))(tokens, valid)
    assert read.cache.length.tolist() == list(LENGTHS) == read.cache.position.tolist()
    for i, length in enumerate(LENGTHS):
        last = length - 1 if side == "right" else WIDTH - 1
        np.testing.assert_allclose(read.logits[i], model.logits(h[i, last]), atol=5e-4)
        for found, expected in ((read.cache.k, whole.k), (read.cache.v, whole.v)):
            np.testing.assert_allclose(found[:, i, :length], expected[:, i, :length], atol=5e-4)


def test_chunks_behind_the_longest_prompt_are_not_read(model):
    """Their tokens could be anything."""
    tokens, valid = prompts()
    run = jax.jit(lambda t, v: read_prompt(model, t, valid=v, chunk=8, needs=Needs(received=True)))
    wide = np.pad(tokens, ((0, 0), (0, 40)), constant_values=5), np.pad(valid, ((0, 0), (0, 40)))
    a, b = run(tokens, valid), run(*wide)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    np.testing.assert_allclose(a.statistics.received[..., :21], b.statistics.received[..., :21], atol=1e-5)
    assert not np.any(b.cache.k[:, :, WIDTH:])


def test_no_array_is_prompt_times_prompt(model):
    """Of all that is computed in reading 4,096 tokens for all policies at once, and in choosing by each of them."""
    width = 4096
    tokens = jax.ShapeDtypeStruct((1, width), jnp.int32)

    def run(tokens):
        read = read_prompt(model, tokens, needs=NEEDS, repeat=REPEAT, chunk=128)
        keys = jax.random.split(jax.random.key(0), 1)
        kept = [
            choose(model, read, Eviction(policy()), jnp.array([100], jnp.int32), keys=keys)
            for policy in POLICIES.values()
        ]
        return read.logits, [k.keep for k in kept]

    largest = max(sizes(jax.make_jaxpr(run)(tokens).jaxpr))
    assert largest <= HEADS * 128 * (width + 128)  # a chunk's scores of all heads
    assert largest < width * width / 4


def sizes(jaxpr):
    """Elements of every array in a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape)) if hasattr(variable.aval, "shape") else 0
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


QUESTION = prompts()[1] & (np.arange(WIDTH)[None] >= np.asarray(LENGTHS)[:, None] - 3)


@pytest.fixture(scope="module")
def everything(model):
    """Prompts with questions, read once for all policies."""
    tokens, valid = prompts()
    return jax.jit(lambda t, v: read_prompt(model, t, valid=v, question=QUESTION, needs=NEEDS, chunk=8, repeat=REPEAT))(
        tokens, valid
    )


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_keeps_the_budget_and_the_question(model, everything, name):
    """Per example, with a question read along and entries forced; sums over layers and heads are exact."""
    read, question = everything, QUESTION
    forced = np.zeros((2, WIDTH), bool)
    forced[:, 4] = True
    keys = jax.random.split(jax.random.key(0), 2)
    eviction = Eviction(POLICIES[name](), sinks=1, recent=1)
    run = jax.jit(lambda read, budget: choose(model, read, eviction, budget, forced=forced, keys=keys))
    for budget in (np.array([5, 9], np.int32), np.array([3, 100], np.int32)):
        kept = run(read, budget)
        keep = np.asarray(kept.keep)
        context = np.asarray(context_entries(read))
        asked = np.minimum(budget, context) if name != "full" else context
        assert context.tolist() == [n - 3 for n in LENGTHS]
        heads = keep.shape[2]
        of_context = keep & ~question[:, None, None]
        assert of_context.sum(axis=(1, 2, 3)).tolist() == (LAYERS * heads * asked).tolist()
        assert (keep.sum(axis=(1, 2, 3)) - of_context.sum(axis=(1, 2, 3))).tolist() == [LAYERS * heads * 3] * 2
        assert keep[:, :, :, [0, 4]].all() and keep[0, :, :, LENGTHS[0] - 4].all()


def test_allotments_of_whole_prompts(model):
    """Uniform keeps as many everywhere, a pyramid more in the first layer, one top-k over the model what is best."""
    tokens, valid = prompts()
    policy = SnapKV(window=2)
    read = jax.jit(lambda t, v: read_prompt(model, t, valid=v, needs=policy.needs, chunk=8))(tokens, valid)
    budget = jnp.array([6, 6], jnp.int32)

    def chosen(**options):
        return jax.jit(lambda read: choose(model, read, Eviction(policy, **options), budget))(read)

    uniform = chosen().keep
    assert (uniform.sum(-1) == 6).all()
    pyramid = chosen(allotment=Allotment(layers="pyramid", beta=3))
    assert pyramid.keep.sum(-1).tolist() == [[[10, 10], [2, 2]]] * 2
    spread = chosen(allotment=GLOBAL).keep
    assert spread.sum(axis=(1, 2, 3)).tolist() == [6 * uniform.shape[1] * uniform.shape[2]] * 2
    assert np.ptp(spread.sum(-1)[0]) > 0
    bounded = chosen(allotment=GLOBAL, most=7).keep
    assert bounded.sum(axis=(1, 2, 3)).tolist() == spread.sum(axis=(1, 2, 3)).tolist() and bounded.sum(-1).max() <= 7


def test_streaming_llm_keeps_the_ends(model, everything):
    read = everything._replace(question=jnp.zeros_like(everything.question))
    eviction = Eviction(SinksWindow(sinks=2))
    keep = jax.jit(lambda read: choose(model, read, eviction, jnp.array([6, 6], jnp.int32)).keep)(read)
    for i, length in enumerate(LENGTHS):
        for row in np.asarray(keep[i]).reshape(-1, keep.shape[-1]):
            assert np.flatnonzero(row).tolist() == [0, 1, *range(length - 4, length)]


def test_a_policy_that_reads_twice_says_what_it_needs(model):
    tokens, _ = prompts()
    with pytest.raises(ValueError, match="needs `repeat`"):
        read_prompt(model, jnp.asarray(tokens), needs=KVzip().needs)
    assert max(REPEAT.first + REPEAT.later) < VOCABULARY and ExpectedAttention().needs.moments == 4
