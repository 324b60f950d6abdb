"""Contexts read once, pruned and asked: against decoding with the whole cache, and from disk."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import ADA, GLOBAL, H2O, Full, KeyDiff, KVzip, Random, Repeat, SinksWindow, SnapKV
from rcp.eviction.prompt import Eviction
from rcp.infer import programs
from rcp.infer.context import ContextModel
from rcp.infer.context_file import load_context, save_context
from rcp.infer.generate import generate
from rcp.infer.sample import Sampling, sample_keys
from rcp.infer.weights import ModelWeights
from rcp.nn.cache import Context, tail_of
from rcp.nn.chunk import read_chunk
from rcp.types import UserError
from tests.eviction.small import KV_HEADS, LAYERS, small_model

NEW = 6
RNG = np.random.default_rng(5)
CONTEXTS = [RNG.integers(1, 24, n).tolist() for n in (19, 30, 8)]
QUESTIONS = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def plain(model):
    """Greedy continuations by the whole cache; one compile."""

    @jax.jit
    def run(tokens, valid):
        return generate(model, tokens, valid=valid, max_new=NEW).tokens

    def of(rows):
        tokens, valid = np.zeros((3, 40), np.int32), np.zeros((3, 40), bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], valid[i, : len(row)] = row, True
        return np.asarray(run(tokens, valid))[: len(rows)].tolist()

    return of


def reader(model, policy, **options):
    eviction = {name: options.pop(name) for name in ("allotment", "repack", "sinks", "recent") if name in options}
    return ContextModel(model, Eviction(policy, **eviction), chunk=8, multiple=8, **options)


@pytest.mark.parametrize("repack", [False, True])
def test_all_kept_is_plain_greedy_decoding(model, plain, repack):
    """Question with the context, question behind it: token for token what `generate` gives."""
    expected = plain([[*c, *q] for c, q in zip(CONTEXTS, QUESTIONS)])
    kept = reader(model, Full(), repack=repack)
    alone = kept.prune(kept.read(CONTEXTS))
    assert kept.answer(alone, QUESTIONS, max_new=NEW) == expected
    together = kept.prune(kept.read(CONTEXTS, QUESTIONS))
    assert kept.go_on(together, max_new=NEW) == expected
    assert (alone.kept == alone.entries).all() and (together.kept == together.asked).all()


def test_a_token_that_was_taken_back_is_read_again(model, plain):
    """A policy sees the question's last token; behind what was kept it gives what the whole prompt gives."""
    expected = plain([[*c, *q] for c, q in zip(CONTEXTS, QUESTIONS)])
    kept = reader(model, Full())
    pruned = kept.prune(kept.read(CONTEXTS, QUESTIONS), take_back=1)
    assert kept.answer(pruned, [question[-1:] for question in QUESTIONS], max_new=NEW) == expected
    assert (pruned.kept == pruned.entries).all()
    with pytest.raises(UserError, match="1 tokens were taken back: read them again"):
        kept.go_on(pruned, max_new=NEW)
    with pytest.raises(UserError, match="are still in what was read"):
        kept.answer_lossless(kept.read(CONTEXTS, QUESTIONS), pruned, QUESTIONS, max_new=NEW)


@pytest.mark.parametrize("part", [1, 4, NEW])
def test_an_answer_comes_in_parts_as_it_is_decoded(model, part):
    """Put together the parts are what `answer` and `go_on` give, drawn or not; a row that has ended says nothing."""
    kept = reader(model, KeyDiff(), eos_ids=(2, 17))
    pruned = kept.prune(kept.read(CONTEXTS), keep_rate=0.5)
    asked = kept.prune(kept.read(CONTEXTS, QUESTIONS), keep_rate=0.5)
    drawn = Sampling(sample_keys(1, jnp.arange(3), 1).reshape(-1), 0.7)
    wholes = [kept.answer(pruned, QUESTIONS, max_new=NEW, drawn=by) for by in (None, drawn)]
    wholes.append(kept.go_on(asked, max_new=NEW))
    before = programs.advance_answer._cache_size()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    found = [kept.stream_answer(pruned, QUESTIONS, max_new=NEW, part=part, drawn=by) for by in (None, drawn)]
    found.append(kept.stream_answer(asked, max_new=NEW, part=part))
    found.append(kept.stream_answer(pruned.context, QUESTIONS, max_new=NEW, part=part))
    wholes.append(wholes[0])
    for whole, parts in zip(wholes, map(list, found), strict=True):
        assert [list(chain(*of_row)) for of_row in zip(*parts, strict=True)] == whole
        assert len(parts) == -(-max(map(len, whole)) // part)
        assert all(len(ids) == part for one in parts[:-1] for ids in one[:1] if len(whole[0]) == NEW)
    assert len({len(ids) for whole in wholes for ids in whole}) > 1  # some have ended early
    after = programs.advance_answer._cache_size()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    assert after - before <= 3 and (part == 1 or after == before)  # whatever the part is


def test_an_answer_in_parts_says_at_once_what_it_lacks(model):
    kept = reader(model, Full())
    back = kept.prune(kept.read(CONTEXTS, QUESTIONS), take_back=1)
    with pytest.raises(UserError, match="1 tokens were taken back"):
        kept.stream_answer(back)
    with pytest.raises(UserError, match="a context alone holds nothing to go on from"):
        kept.stream_answer(back.context)
    with pytest.raises(UserError, match="no empty question"):
        kept.stream_answer(back.context, [[], [1], [2]])
    with pytest.raises(UserError, match="part 0, max_new 3: expected both from 1 on"):
        kept.stream_answer(back, QUESTIONS, max_new=3, part=0)


def test_the_layers_of_one_model_serve_another(model, plain):
    kept = reader(model, Full())
    other = ContextModel(model, Eviction(KeyDiff()), chunk=8, multiple=8, weights=kept.weights)
    whole = other.prune(other.read(CONTEXTS))
    assert other.answer(whole, QUESTIONS, max_new=NEW) == kept.answer(whole, QUESTIONS, max_new=NEW)
    assert other.weights.layers is kept.weights.layers


def test_rounded_weights_draft_and_those_there_are_verify(model):
    """Lossless answers are those of a model that rounds nothing, though what rounded weights alone decode is not."""
    kept = reader(model, Full())
    read = kept.read(CONTEXTS)
    whole = kept.prune(read)
    expected = kept.answer(whole, QUESTIONS, max_new=NEW)
    weights = ModelWeights(model)
    weights.rounded = jax.tree.map(lambda x: -x if x.dtype == jnp.float32 else x, weights.rounded)  # drafts nonsense
    rounding = reader(model, Full(), weights=weights, int8_weights=True)
    assert rounding.answer(whole, QUESTIONS, max_new=NEW) != expected
    found = rounding.answer_lossless(read, whole, QUESTIONS, max_new=NEW)
    assert found.ids == expected and (found.accepted < found.drafted).all()
    both = kept.answer_lossless(read, whole, QUESTIONS, max_new=NEW)
    assert both.ids == expected and (both.accepted > found.accepted).all()


def test_one_context_answers_many_questions(model, plain):
    kept = reader(model, SnapKV(window=4))
    contexts = kept.prune(kept.read(CONTEXTS), keep_rate=0.5)
    one = kept.prune(kept.read(CONTEXTS[:1]), keep_rate=0.5)
    answers = kept.answer(one, QUESTIONS, max_new=NEW)
    assert answers == [kept.answer(one, [question], max_new=NEW)[0] for question in QUESTIONS]
    assert kept.answer(contexts, [QUESTIONS[0]] * 3, max_new=NEW)[0] == answers[0]  # in a batch of other lengths too
    assert answers != plain([[*CONTEXTS[0], *question] for question in QUESTIONS])  # pruning changed something


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_what_is_kept_is_what_was_asked(model, rate):
    counts = np.maximum(1, np.floor(rate * np.array([len(c) for c in CONTEXTS]) + 1e-4)).astype(int)
    for allotment in (None, ADA, GLOBAL):
        kept = reader(model, KeyDiff(), allotment=allotment)
        pruned = kept.prune(kept.read(CONTEXTS), keep_rate=rate)
        assert pruned.kept.tolist() == pruned.asked.tolist() == (LAYERS * KV_HEADS * counts).tolist()
        held = sum(np.asarray(run.length).sum(axis=(0, 2)) for run in pruned.context.runs)
        assert held.tolist() == pruned.kept.tolist()  # and nothing was cut off by a capacity
    few = kept.prune(kept.read(CONTEXTS), keep_tokens=10)
    assert few.kept.tolist() == [LAYERS * KV_HEADS * min(10, len(c)) for c in CONTEXTS]


def test_smaller_budgets_take_less_room(model):
    kept = reader(model, KeyDiff())
    read = kept.read(CONTEXTS)
    sizes = [kept.prune(read, keep_tokens=n).context.runs[0].k.shape[2] for n in (5, 8, 9, 30)]
    assert sizes == [8, 8, 16, 32]


def test_a_question_read_along_is_kept_and_seen_by_the_policy(model):
    kept = reader(model, SnapKV(window=3))
    read = kept.read(CONTEXTS, QUESTIONS)
    pruned = kept.prune(read, keep_tokens=4)
    lengths = np.asarray(pruned.context.runs[0].length)
    assert lengths[0, :, 0].tolist() == [4 + len(q) for q in QUESTIONS]
    other = kept.prune(kept.read(CONTEXTS, [q[::-1] + [7] for q in QUESTIONS]), keep_tokens=4)
    assert np.any(np.asarray(other.context.runs[0].position[:, :, :4]) != pruned.context.runs[0].position[:, :, :4])


def test_sampling_depends_on_the_example_alone(model):
    kept = reader(model, H2O())
    one = kept.prune(kept.read(CONTEXTS[:1]), keep_rate=0.5)
    three = kept.prune(kept.read(CONTEXTS), keep_rate=0.5)
    keys = sample_keys(0, jnp.arange(3), 1)[:, 0]
    drawn = kept.answer(three, QUESTIONS, max_new=NEW, drawn=Sampling(keys, 1.5, 0.9))
    assert kept.answer(one, QUESTIONS[:1], max_new=NEW, drawn=Sampling(keys[:1], 1.5, 0.9)) == drawn[:1]
    assert kept.answer(three, QUESTIONS, max_new=NEW, drawn=Sampling(keys, 0.0)) == kept.answer(
        three, QUESTIONS, max_new=NEW
    )


def test_answers_end_at_their_end_token(model):
    kept = reader(model, SinksWindow(sinks=1), eos_ids=(7,), pad_id=0)
    plain_ids = reader(model, SinksWindow(sinks=1))
    pruned = kept.prune(kept.read(CONTEXTS), keep_rate=0.4)
    for row, whole in zip(kept.answer(pruned, QUESTIONS), plain_ids.answer(pruned, QUESTIONS)):
        assert row == (whole[: whole.index(7) + 1] if 7 in whole else whole)


def test_nothing_is_compiled_anew_within_a_bucket(model):
    """Other prompts, lengths, rates, questions: as many compiled programs as before."""
    kept = reader(model, Random())
    functions = (programs.read, programs.choose, programs.prune, programs.answer)
    keys = jax.random.split(jax.random.key(1), 2)

    def use(contexts, questions, rate):
        pruned = kept.prune(kept.read(contexts), keep_rate=rate, keys=keys)
        return kept.answer(pruned, questions, max_new=4)

    use([CONTEXTS[1], CONTEXTS[0]], QUESTIONS[:2], 0.5)
    before = [f._cache_size() for f in functions]
    for length, rate in ((25, 0.4), (32, 0.3), (28, 0.53)):
        rows = [RNG.integers(1, 24, n).tolist() for n in (length, 5)]
        use(rows, [[1, 2, 3, 4, 5, 6, 7], [2]], rate)
    assert [f._cache_size() for f in functions] == before
    use([CONTEXTS[1] + [1] * 8, [2]], QUESTIONS[:2], 0.5)  # beyond the bucket
    assert [f._cache_size() for f in functions] > before


def test_eight_bits(model):
    """Entries are off by half a step at most, and are read as the numbers that they stand for."""
    kept = reader(model, KeyDiff(), int8=True)
    plain_bits = reader(model, KeyDiff())
    small = kept.prune(kept.read(CONTEXTS), keep_rate=0.6).context
    whole = plain_bits.prune(plain_bits.read(CONTEXTS), keep_rate=0.6).context
    restored = []
    for few, many in zip(small.runs, whole.runs):
        assert few.k.dtype == few.v.dtype == jnp.int8 and few.scales is not None
        k, v = (x.astype(jnp.float32) * scale[..., None] for x, scale in zip((few.k, few.v), few.scales))
        restored.append(many._replace(k=k, v=v))
        for x, y, scale in zip((k, v), (many.k, many.v), few.scales):
            assert (jnp.abs(x - y) <= 0.501 * scale[..., None]).all()
    question = jnp.asarray([[3, 1, 4, 1]] * 3, jnp.int32)

    @jax.jit
    def logits(context):
        tail = tail_of(context, 4, model.dtype)
        return model.logits(read_chunk(model, question, tail, context=context, slots=0)[0])

    rounded = logits(small)
    np.testing.assert_allclose(rounded, logits(Context(tuple(restored), whole.position)), atol=1e-4)
    assert np.abs(rounded - logits(whole)).max() > 0
    assert all(len(row) == NEW for row in kept.answer(small, QUESTIONS, max_new=NEW))


@pytest.mark.parametrize(("dtype", "int8"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_saved_and_loaded(tmp_path, dtype, int8):
    model = small_model(dtype=dtype)
    kept = reader(model, KVzip(), repeat=Repeat((3, 4), (5,), chunk=16), runs=2, int8=int8)
    pruned = kept.prune(kept.read(CONTEXTS[:1]), keep_rate=0.4)
    path = tmp_path / "deep" / "context.npz"
    save_context(path, pruned.context, model, weights="abc")
    found = load_context(path, model, weights="abc")
    jax.tree.map(np.testing.assert_array_equal, found, pruned.context)
    assert found.runs[0].k.dtype == (jnp.int8 if int8 else model.dtype)
    assert kept.answer(found, QUESTIONS, max_new=NEW) == kept.answer(pruned, QUESTIONS, max_new=NEW)
    assert [p.name for p in path.parent.iterdir()] == ["context.npz"]


def test_a_file_of_another_model_is_refused_and_named(model, tmp_path):
    path = tmp_path / "context.npz"
    kept = reader(model, KeyDiff())
    save_context(path, kept.prune(kept.read(CONTEXTS)).context, model, weights="abc")
    with pytest.raises(UserError, match=r"context\.npz.*weights 'abc' there, 'xyz' here"):
        load_context(path, model, weights="xyz")
    with pytest.raises(UserError, match="n_layers 2 there, 1 here"):
        load_context(path, small_model(layers=1), weights="abc")
    with pytest.raises(UserError, match="dtype 'float32' there, 'bfloat16' here"):
        load_context(path, small_model(dtype="bfloat16"), weights="abc")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole context file"):
        load_context(path, model, weights="abc")
    with pytest.raises(UserError, match="no such file"):
        load_context(tmp_path / "other.npz", model)


def test_wrong_use_is_said(model):
    kept = reader(model, KeyDiff())
    with pytest.raises(UserError, match="none of them empty"):
        kept.read([[1], []])
    with pytest.raises(UserError, match="2 contexts with 1 questions"):
        kept.read([[1], [2]], [[3]])
    pruned = kept.prune(kept.read(CONTEXTS[:2]))
    with pytest.raises(UserError, match="3 questions for 2 contexts"):
        kept.answer(pruned, QUESTIONS)
    with pytest.raises(UserError, match=r"expected a rate in \(0, 1\]"):
        kept.prune(kept.read(CONTEXTS[:1]), keep_rate=0.0)
    with pytest.raises(ValueError, match="needs `repeat`"):
        reader(model, KVzip())
