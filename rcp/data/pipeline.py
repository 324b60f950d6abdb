"""Batches from a task: an endless shuffled training stream that resumes exactly, and fixed evaluation batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from rcp.data.pack import EncodedExample, bucket, check_fits, collate, drop_segments, encode
from rcp.data.tasks.base import Split, Task
from rcp.types import Batch, Example, Tokenizer, UserError

Overlong = Literal["error", "drop_segments"]


class EncodedTask:
    """Random access to the encoded examples of a split; each is tokenised once."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        split: Split,
        count: int | None,
        *,
        length: int,
        max_segments: int,
        max_answer: int | None = None,
        overlong: Overlong = "error",
    ):
        self.examples = task.examples(split, count)
        if not len(self.examples):
            raise UserError(f"task {type(task).__name__}: no examples in split {split!r}")
        self._groups = {name: number for number, name in enumerate(task.groups)}
        self._tokenizer = tokenizer
        self._length, self._max_segments, self._overlong = length, max_segments, overlong
        self._max_answer = max_answer
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedExample:
        if (found := self._cache.get(index)) is not None:
            return found
        example = self.examples[index]
        encoded = encode(example, self._tokenizer, index=index, group=self._groups.get(example.group, 0))
        if self._overlong == "drop_segments":
            encoded = drop_segments(encoded, self._length, self._max_segments)
        check_fits(encoded, self._length, self._max_segments, self._max_answer)
        self._cache[index] = encoded
        return encoded


class TrainPipeline(Iterator[Batch]):
    """Endless batches, each epoch in another order; a pure function of the arguments and the state.

    Args:
      batch_size: rows of a batch over all processes; batches run over the ends of epochs, so every one is full.
      lengths: the static lengths; a batch has the smallest that holds all its prompts.
      max_segments: S of every batch.
      seed: of the order.
      count: how many examples of the split an epoch has (None: all).
      max_answer: most tokens of an answer; a longer one stops and names the example.
      overlong: what to do with a prompt over the longest length: "error" stops and names it, "drop_segments" leaves out
        its last segments.
      shard: (process, processes): this process gets its consecutive share of the rows of every batch. The length is
        chosen over the whole batch, so that all processes agree on it.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        lengths: Sequence[int],
        max_segments: int,
        seed: int,
        split: Split = "train",
        count: int | None = None,
        max_answer: int | None = None,
        shuffle: bool = True,
        overlong: Overlong = "error",
        shard: tuple[int, int] = (0, 1),
    ):
        import grain

        if batch_size % shard[1]:
            raise UserError(f"data.batch_size = {batch_size}: not divisible by the {shard[1]} processes")
        self.encoded = EncodedTask(
            task,
            tokenizer,
            split,
            count,
            length=max(lengths),
            max_segments=max_segments,
            max_answer=max_answer,
            overlong=overlong,
        )
        self._pad_id = tokenizer.pad_id
        self._batch_size, self._lengths, self._max_segments = batch_size, tuple(sorted(lengths)), max_segments
        self._shard = shard
        dataset = grain.MapDataset.range(len(self.encoded)).seed(seed)
        if shuffle:
            dataset = dataset.shuffle()
        dataset = dataset.repeat(None).batch(batch_size, batch_fn=list)
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __next__(self) -> Batch:
        examples = [self.encoded[int(i)] for i in next(self._iterator)]
        length = bucket(max(example.length for example in examples), self._lengths)
        assert length is not None  # EncodedTask has checked it
        process, processes = self._shard
        rows = self._batch_size // processes
        mine = examples[process * rows : (process + 1) * rows]
        return collate(mine, length, self._max_segments, rows, pad_id=self._pad_id)

    def get_state(self) -> bytes:
        """The place in the stream, as JSON."""
        return json.dumps(self._iterator.get_state()).encode()

    def set_state(self, state: bytes | str | dict[str, Any]) -> None:
        """Goes on at the place where `get_state` was called, in the middle of an epoch too."""
        self._iterator.set_state(state if isinstance(state, dict) else json.loads(state))


def eval_batches(
    task: Task,
    tokenizer: Tokenizer,
    split: Split,
    count: int | None,
    *,
    batch_size: int,
    lengths: Sequence[int],
    max_segments: int,
    max_answer: int | None = None,
    overlong: Overlong = "error",
) -> tuple[list[Batch], list[Example]]:
    """The first `count` examples in order, in batches of one length (the smallest that holds them all: one compile).

    The last batch is filled up with rows of weight 0. Also returns the examples, whose order is that of the rows.
    """
    encoded = EncodedTask(
        task,
        tokenizer,
        split,
        count,
        length=max(lengths),
        max_segments=max_segments,
        max_answer=max_answer,
        overlong=overlong,
    )
    rows = [encoded[i] for i in range(len(encoded))]
    length = bucket(max(row.length for row in rows), lengths)
    assert length is not None
    batches = [
        collate(rows[at : at + batch_size], length, max_segments, batch_size, pad_id=tokenizer.pad_id)
        for at in range(0, len(rows), batch_size)
    ]
    return batches, [encoded.examples[i] for i in range(len(rows))]


def real_rows(batches: Sequence[Batch], values: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates one array [B, ...] a batch and leaves out the rows of weight 0."""
    return np.concatenate([np.asarray(v)[np.asarray(b.weight) > 0] for b, v in zip(batches, values, strict=True)])
