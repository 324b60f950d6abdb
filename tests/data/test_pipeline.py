"""The training stream: deterministic, shuffled, and resumed exactly; evaluation batches in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from rcp.data.pipeline import EncodedTask, TrainPipeline, eval_batches
from rcp.data.tasks.base import LazyExamples, Split
from rcp.data.tasks.chain import Chain
from rcp.types import Batch, Example, Role, Tokenizer, UserError

TASK = Chain(segments=(2, 6), test_segments=(3, 8), train_size=50)
TOKENIZER = TASK.tokenizer()


def pipeline(**changes) -> TrainPipeline:
    options = {"lengths": (16, 24, 32), "max_segments": 8, "count": None, "batch_size": 8, "seed": 0} | changes
    own = {key: options.pop(key) for key in ("lengths", "max_segments", "count", "overlong") if key in options}
    return TrainPipeline(EncodedTask(TASK, TOKENIZER, "train", **own), **options)


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_same_arguments_same_stream():
    a, b = list(itertools.islice(pipeline(), 20)), list(itertools.islice(pipeline(), 20))
    assert all(map(same, a, b))
    c = list(itertools.islice(pipeline(seed=1), 20))
    assert not all(map(same, a, c))


@pytest.mark.parametrize("consumed", [0, 1, 5, 6, 7, 19])
def test_resumes_at_the_very_next_batch(consumed):
    """50 examples in batches of 8: places in the middle of an epoch, on batches across its end, and epochs later."""
    stream = pipeline()
    for _ in range(consumed):
        next(stream)
    state = stream.get_state()
    expected = list(itertools.islice(stream, 15))
    resumed = pipeline()
    next(resumed)
    resumed.set_state(state)
    assert all(map(same, expected, itertools.islice(resumed, 15)))
    again = pipeline()
    again.set_state(json.loads(state))
    assert same(next(again), expected[0])


def test_every_epoch_has_every_example_once_in_another_order():
    stream = pipeline(batch_size=10)
    epochs = [np.concatenate([next(stream).index for _ in range(5)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))


def test_phases_are_gone_over_one_after_another_each_so_many_times():
    """50 examples in 3 phases, twice each: 16, 17 and 17 of them; every pass has an order of its own."""
    stream = pipeline(batch_size=1, phases=3, repeats=2)
    indices = [int(next(stream).index[0]) for _ in range(200)]
    cuts = [0, 16, 32, 49, 66, 83, 100]
    phases = [range(16), range(16), range(16, 33), range(16, 33), range(33, 50), range(33, 50)]
    for epoch in (indices[:100], indices[100:]):
        passes = [epoch[cuts[i] : cuts[i + 1]] for i in range(6)]
        assert [sorted(own) for own in passes] == [list(phase) for phase in phases]
        assert all(passes[i] != passes[i + 1] for i in (0, 2, 4))
    assert indices[:100] != indices[100:]
    with pytest.raises(UserError, match=r"data.phases = 51: expected at most the 50"):
        pipeline(phases=51)


@pytest.mark.parametrize("consumed", [1, 4, 13])
def test_a_curriculum_resumes_at_the_very_next_batch(consumed):
    """Within a phase, over its end and in a later epoch; the process and its share of the rows included."""
    options = {"phases": 3, "repeats": 2, "shard": (1, 2)}
    stream = pipeline(**options)
    for _ in range(consumed):
        next(stream)
    state, expected = stream.get_state(), list(itertools.islice(stream, 15))
    resumed = pipeline(**options)
    next(resumed)
    resumed.set_state(state)
    assert all(map(same, expected, itertools.islice(resumed, 15)))
    assert same(next(stream), next(resumed))


def test_count_limits_the_epoch():
    stream = pipeline(count=12, batch_size=6)
    assert sorted(np.concatenate([next(stream).index, next(stream).index])) == list(range(12))


def test_batches_take_the_smallest_length_that_fits():
    lengths = set()
    for batch in itertools.islice(pipeline(batch_size=2), 60):
        longest = (batch.role != 0).sum(1).max()
        assert batch.tokens.shape[1] == min(limit for limit in (16, 24, 32) if limit >= longest)
        lengths.add(batch.tokens.shape[1])
    assert lengths == {16, 24, 32}


def test_shards_are_the_rows_of_the_whole_batch():
    whole, parts = pipeline(), [pipeline(shard=(i, 4)) for i in range(4)]
    for _ in range(10):
        shares = [next(part) for part in parts]
        joined = Batch(*(np.concatenate(fields) for fields in zip(*shares, strict=True)))
        assert same(next(whole), joined)
    with pytest.raises(UserError, match=r"data.batch_size = 8"):
        pipeline(shard=(0, 3))


def test_over_long_example_is_named():
    with pytest.raises(UserError, match=r"chain/train/\d+: the prompt has \d+ tokens, the limit is 12"):
        next(pipeline(lengths=(12,), batch_size=50))
    dropped = next(pipeline(lengths=(15,), batch_size=50, overlong="drop_segments"))
    assert (dropped.role != 0).sum(1).max() <= 15
    kept = [(row >= 0).sum() for row in dropped.support]
    needed = [(row == 1).sum() for row in dropped.support]
    originals = [TASK.example("train", int(i)) for i in dropped.index]
    assert needed == [len(e.support or ()) for e in originals] and min(kept) >= 1


@dataclass(frozen=True)
class Counted:
    """A task that counts how often an example is made."""

    made: list[int] = field(default_factory=list)
    groups = ("a", "b")

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        return LazyExamples(count or 0, self.make)

    def make(self, index: int) -> Example:
        self.made.append(index)
        return Example("", (" v1 = 2 ;",), " v1 ?", " 2", group="ab"[index % 2], uid=str(index))

    def check(self, prediction: str, example: Example) -> bool:
        return False

    def tokenizer(self) -> Tokenizer | None:
        return None


@dataclass(frozen=True)
class Uneven(Counted):
    """Questions of one to five tokens more than a full stop."""

    def make(self, index: int) -> Example:
        return Example("", (" v1 = 2 ;",), " v1" * (1 + index * 7 % 5) + " ?", " 2", group="a", uid=str(index))


class Twenty(Uneven):
    """Of which there are twenty."""

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        return super().examples(split, min(20, count or 20))


def fixed_lengths(batch: Batch) -> np.ndarray:
    return np.sum((batch.role != Role.PAD) & (batch.role != Role.CONTEXT), axis=1)


def test_an_ordered_stream_has_prompts_of_like_length_together_and_repeats():
    encoded = EncodedTask(Uneven(), TOKENIZER, "train", 20, lengths=(16,), max_segments=1)
    ordered = TrainPipeline(encoded, batch_size=4, seed=0, ordered=True)
    batches = [next(ordered) for _ in range(6)]
    assert [set(fixed_lengths(batch)) for batch in batches] == [{n} for n in (3, 4, 5, 6, 7, 3)]
    index = [batch.index.tolist() for batch in batches]
    assert sorted(itertools.chain(*index[:5])) == list(range(20)) and index[5] == index[0]


def test_evaluation_reads_prompts_of_like_length_together():
    batches, examples = eval_batches(Uneven(), TOKENIZER, "test", 20, batch_size=4, lengths=(16,), max_segments=1)
    assert [set(fixed_lengths(batch)) for batch in batches] == [{n} for n in (3, 4, 5, 6, 7)]
    assert {i: example.uid for i, example in examples.items()} == {i: str(i) for i in range(20)}


def test_evaluation_may_begin_at_a_later_example():
    options = {"batch_size": 4, "lengths": (16,), "max_segments": 1}
    batches, examples = eval_batches(Uneven(), TOKENIZER, "test", 6, first=3, **options)
    whole, _ = eval_batches(Uneven(), TOKENIZER, "test", 20, **options)
    prompts = {int(i): row for batch in whole for i, row in zip(batch.index, batch.tokens)}
    found = {int(i): row for b in batches for i, row, weight in zip(b.index, b.tokens, b.weight) if weight}
    assert sorted(found) == list(examples) == list(range(3, 9))
    for i, row in found.items():
        np.testing.assert_array_equal(row, prompts[i])
        assert examples[i].uid == str(i)
    with pytest.raises(UserError, match=r"config\.eval\.first is 20: split 'test' has 20 examples, counted from 0"):
        eval_batches(Twenty(), TOKENIZER, "test", 4, first=20, **options)


def test_a_prompt_over_the_models_positions_is_refused():
    options = {"lengths": (16, 64), "max_segments": 8}
    whole, _ = eval_batches(TASK, TOKENIZER, "test", 8, batch_size=8, **options)
    longest = int(np.max(np.sum(whole[0].role != Role.PAD, axis=1)))
    fits, _ = eval_batches(TASK, TOKENIZER, "test", 8, batch_size=8, positions=longest, **options)
    assert same(fits[0], whole[0]), "the padding needs no positions"
    said = rf"{longest} tokens, which config.data.lengths allows; expected at most the {longest - 1} .*max_positions"
    with pytest.raises(UserError, match=said):
        eval_batches(TASK, TOKENIZER, "test", 8, batch_size=8, positions=longest - 1, **options)


def test_an_epoch_does_not_tokenise_again():
    task = Counted()
    encoded = EncodedTask(task, TOKENIZER, "train", 8, lengths=(16,), max_segments=1)
    for seed in (0, 1):  # nor does a second stream over the same examples
        stream = TrainPipeline(encoded, batch_size=4, seed=seed)
        for _ in range(10):
            batch = next(stream)
            assert (batch.group == batch.index % 2).all()
    assert sorted(task.made) == list(range(8))
    with pytest.raises(UserError, match=r"no examples in split 'train'"):
        EncodedTask(task, TOKENIZER, "train", 0, lengths=(16,), max_segments=1)


def test_eval_batches_are_whole_and_filled_up():
    batches, examples = eval_batches(TASK, TOKENIZER, "test", 11, batch_size=4, lengths=(16, 40, 64), max_segments=8)
    assert [b.tokens.shape for b in batches] == [(4, 40)] * 3 and len(examples) == 11
    assert [w for b in batches for w in b.weight] == [1.0] * 11 + [0.0]
    index, tokens = (np.concatenate([getattr(b, name) for b in batches])[:11] for name in ("index", "tokens"))
    assert sorted(index.tolist()) == list(range(11))
    for row, example in zip(tokens, [examples[i] for i in index], strict=True):
        text = "".join(example.context) + example.question + example.answer
        assert TOKENIZER.decode(row[: len(text.split())].tolist()) == text
    assert (batches[-1].role[-1] != 0).any()
