"""Lossless decoding: whatever drafts, the whole context answers; and the counts, against blocks gone over by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import KeyDiff
from rcp.eviction.compaction import moved
from rcp.eviction.prompt import Eviction
from rcp.infer import programs
from rcp.infer.context import ContextModel
from rcp.infer.generate import prefill_behind
from rcp.infer.lossless import decode_lossless
from rcp.infer.sample import Sampling, sample_keys
from rcp.nn.cache import Context, Entries, KVCache, as_context
from rcp.nn.chunk import read_chunk
from rcp.types import UserError
from tests.eviction.small import DIM, KV_HEADS, LAYERS, small_model

NEW, GAMMA, END = 13, 3, 7
RNG = np.random.default_rng(5)
CONTEXTS = [RNG.integers(1, 24, n).tolist() for n in (19, 30, 8, 25)]
QUESTIONS = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [2, 2]]
OPTIONS = {"max_new": NEW, "gamma": GAMMA}


@pytest.fixture(scope="module")
def model():
    return small_model()


def reader(model, policy, **eviction):
    return ContextModel(model, Eviction(policy, **eviction), chunk=8, multiple=8, eos_ids=(END,))


def drafter(seed: int, position) -> Context:
    """A cache of noise, heads of unequal lengths: no context at all."""
    rng = np.random.default_rng(seed)
    shape = (LAYERS, len(CONTEXTS), 8, KV_HEADS)
    k, v = (jnp.asarray(rng.normal(size=(*shape, DIM)) * 3, jnp.float32) for _ in range(2))
    length = jnp.asarray(rng.integers(0, 9, (LAYERS, len(CONTEXTS), KV_HEADS)), jnp.int32)
    return Context((Entries(k, v, jnp.zeros(shape, jnp.int32), length),), position)


def test_any_drafter_gives_what_the_whole_context_gives(model):
    """Noise, and what is left of the context at several rates; answers end at different tokens, inside blocks too."""
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS)
    whole = as_context(read.cache)
    expected = kept.answer(whole, QUESTIONS, max_new=NEW)
    pruned = [kept.prune(read, keep_tokens=n).context for n in (1, 4, 8)]
    found = [
        kept.answer_lossless(read, context, QUESTIONS, **OPTIONS)
        for context in [*pruned, *(drafter(seed, whole.position) for seed in range(20))]
    ]
    assert all(answers.ids == expected for answers in found)
    lengths = np.array([len(ids) for ids in expected])
    assert any(ids[-1] == END for ids in expected) and lengths.max() == NEW and len(set(lengths)) > 2
    rates = [answers.accepted.sum() / answers.drafted.sum() for answers in found]
    assert min(rates) < 0.3 and len(set(rates)) > 5
    for answers in found:  # every block gives what was accepted of it and one token of the whole context's own
        assert (answers.accepted <= answers.drafted).all() and (answers.drafted <= GAMMA * answers.blocks).all()
        own = lengths - 1 - answers.accepted
        assert ((own == answers.blocks) | (own == answers.blocks - 1)).all()


def test_counts_are_those_of_blocks_gone_over_by_hand(model):
    """Each block: what the pruned context predicts of the answer, with all before the block read by the whole one."""
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS)
    pruned = kept.prune(read, keep_tokens=8)
    found = kept.answer_lossless(read, pruned, QUESTIONS, **OPTIONS)
    room = NEW + 2 * GAMMA

    @jax.jit
    def read_all(tokens, valid):
        return prefill_behind(model, as_context(read.cache), tokens, valid=valid, room=room)[1]

    @jax.jit
    def predict(tail, tokens, length):
        start = pruned.context.position + length
        h, _, _ = read_chunk(model, tokens, tail._replace(length=length, position=start), context=pruned.context)
        return jnp.argmax(model.logits(h), axis=-1)

    rows = [[*question, *ids] for question, ids in zip(QUESTIONS, found.ids)]
    width = max(map(len, rows)) + GAMMA
    tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    tail = read_all(tokens, np.arange(width)[None] < np.array([[len(row)] for row in rows]))
    said = {}
    for start in range(width - GAMMA + 1):  # the token at `start` is read first
        at = np.full(len(rows), start, np.int32)
        said[start] = np.asarray(predict(tail, tokens[:, start : start + GAMMA], at))
    for i, row in enumerate(rows):
        place, drafted, accepted, blocks = len(QUESTIONS[i]), 0, 0, 0
        while place < len(row) - 1:
            right = said[place][i] == np.array(tokens[i, place + 1 : place + 1 + GAMMA])
            count = min(int(np.cumprod(right).sum()), len(row) - 1 - place)
            ends = place + count + 1 >= len(row) - 1
            drafted += min(GAMMA, len(row) - 1 - place) if ends else GAMMA
            place, accepted, blocks = place + count + 1, accepted + count, blocks + 1
        assert (found.drafted[i], found.accepted[i], found.blocks[i]) == (drafted, accepted, blocks)
    assert 0 < found.accepted.sum() < found.drafted.sum()


def test_the_whole_context_accepts_itself_and_positions_are_turned_back(model):
    """Repacked, a context ends earlier than the whole one. Questions are read along."""
    plain, kept = reader(model, KeyDiff()), reader(model, KeyDiff(), repack=True)
    expected = plain.answer(as_context(plain.read(CONTEXTS).cache), QUESTIONS, max_new=NEW)
    read = kept.read(CONTEXTS, QUESTIONS)
    whole, most = kept.prune(read, keep_tokens=30), kept.prune(read, keep_tokens=24)
    found, shorter = (kept.answer_lossless(read, pruned, **OPTIONS) for pruned in (whole, most))
    assert found.ids == shorter.ids == expected
    lengths = np.array([len(ids) for ids in expected])
    assert (found.accepted == found.drafted).all() and shorter.accepted.sum() < shorter.drafted.sum()
    assert found.blocks.tolist() == (-(-(lengths - 1) // (GAMMA + 1))).tolist()
    there = read.cache.position
    assert most.context.position.tolist() != there.tolist() == whole.context.position.tolist()
    turned = kept.answer_lossless(read, moved(most.context, there, model.frequencies()), **OPTIONS)
    unturned = kept.answer_lossless(read, most.context._replace(position=there), **OPTIONS)
    assert turned.accepted.tolist() == shorter.accepted.tolist() != unturned.accepted.tolist()


def test_one_context_serves_many_questions(model):
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS[:1] * 4)
    expected = kept.answer(as_context(read.cache), QUESTIONS, max_new=NEW)
    context = kept.prune(read, keep_tokens=8).context
    cache = KVCache(*(x[:, :1] for x in read.cache[:2]), *(x[:1] for x in read.cache[2:]))
    one = Context(jax.tree.map(lambda x: x[:, :1], context.runs), context.position[:1])
    found = kept.answer_lossless(read._replace(cache=cache, logits=read.logits[:1]), one, QUESTIONS, **OPTIONS)
    several = kept.answer_lossless(read, context, QUESTIONS, **OPTIONS)
    assert found.ids == several.ids == expected and found.accepted.tolist() == several.accepted.tolist()


def test_drawn_answers_are_those_that_the_whole_context_draws(model):
    """The same noise at the same place: not only the distribution is the same."""
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS)
    pruned = kept.prune(read, keep_tokens=8)
    whole = as_context(read.cache)
    greedy = kept.answer(whole, QUESTIONS, max_new=NEW)
    for seed, temperature, top_p in ((0, 1.0, 0.9), (1, 0.7, 1.0), (2, 0.0, 1.0)):
        drawn = Sampling(sample_keys(seed, jnp.arange(4), 1)[:, 0], temperature, top_p)
        found = kept.answer_lossless(read, pruned, QUESTIONS, drawn=drawn, **OPTIONS)
        assert found.ids == kept.answer(whole, QUESTIONS, max_new=NEW, drawn=drawn)
        assert (found.ids == greedy) == (temperature == 0.0) and found.accepted.sum() > 0


def test_one_compile_serves_other_prompts_and_rates(model):
    kept = reader(model, KeyDiff())
    before = None
    for lengths, rate in (((25, 3, 1, 9), 0.2), ((32, 20, 5, 2), 0.25), ((28, 9, 9, 30), 0.22)):
        read = kept.read([RNG.integers(1, 24, n).tolist() for n in lengths])
        kept.answer_lossless(read, kept.prune(read, keep_rate=rate), QUESTIONS[::-1], **OPTIONS)
        before = programs.lossless._cache_size() if before is None else before
    assert programs.lossless._cache_size() == before


def test_wrong_use_is_said(model):
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS)
    pruned = kept.prune(read, keep_tokens=8)
    with pytest.raises(UserError, match="gamma 0, max_new 4"):
        kept.answer_lossless(read, pruned, QUESTIONS, gamma=0, max_new=4)
    with pytest.raises(UserError, match="3 questions for 4 contexts"):
        kept.answer_lossless(read, pruned, QUESTIONS[:3])
    one = drafter(0, read.cache.position)._replace(position=read.cache.position[:1])
    with pytest.raises(UserError, match="1 pruned contexts, 4 read"):
        kept.answer_lossless(read, one, QUESTIONS[:1])
    turning = ContextModel(model, Eviction(KeyDiff(), repack=True), chunk=8, multiple=8, int8=True)
    with pytest.raises(UserError, match="int8 keys cannot be turned"):
        turning.answer_lossless(read, pruned, QUESTIONS)
    with pytest.raises(ValueError, match="expected both from 1 on"):
        whole = as_context(read.cache)
        decode_lossless(model, read.logits, read.cache, whole=whole, pruned=whole, gamma=0, max_new=1)
