"""Batches from a task: an endless shuffled training stream that resumes exactly, and fixed evaluation batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rcp.data.pack import EncodedExample, bucket, check_fits, collate, drop_segments, encode
from rcp.data.tasks.base import Split, Task, examples_of
from rcp.types import Batch, Example, Tokenizer, UserError

Overlong = Literal["error", "drop_segments"]


class EncodedTask:
    """Random access to the encoded examples of a split; each is tokenised once.

    Args:
      count: how many examples of the split (None: all).
      lengths: the static lengths of batches of them; max_segments: S of such batches.
      max_answer: most tokens of an answer; a longer one stops and names the example.
      overlong: what to do with a prompt over the longest length: "error" stops and names it, "drop_segments" leaves out
        its last segments.
      positions: of the model that reads them. A longer prompt stops and names the example, whatever `lengths` hold.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        split: Split,
        count: int | None,
        *,
        lengths: Sequence[int],
        max_segments: int,
        max_answer: int | None = None,
        overlong: Overlong = "error",
        positions: int | None = None,
    ):
        self.examples = examples_of(task, tokenizer, split, count)
        if not len(self.examples):
            raise UserError(f"task {type(task).__name__}: no examples in split {split!r}")
        self.lengths, self.max_segments = tuple(sorted(lengths)), max_segments
        self._groups = {name: number for number, name in enumerate(task.groups)}
        self._tokenizer, self._overlong, self._max_answer = tokenizer, overlong, max_answer
        self._positions = positions
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedExample:
        if (found := self._cache.get(index)) is not None:
            return found
        example = self.examples[index]
        if example.group and example.group not in self._groups:
            known = ", ".join(self._groups)
            raise UserError(
                f"{example.uid or f'example {index}'}: group {example.group!r} is none of the task's: {known}"
            )
        encoded = encode(example, self._tokenizer, index=index, group=self._groups.get(example.group, 0))
        if self._overlong == "drop_segments":
            encoded = drop_segments(encoded, self.lengths[-1], self.max_segments)
        check_fits(encoded, self.lengths[-1], self.max_segments, self._max_answer)
        if self._positions is not None and encoded.length > self._positions:
            raise UserError(
                f"{encoded.uid or f'example {index}'}: {encoded.length} tokens, which config.data.lengths allows; "
                f"expected at most the {self._positions} that the model has positions for (its max_positions): shorten "
                'the prompts, or lower config.data.lengths with config.data.overlong = "drop_segments"'
            )
        self._cache[index] = encoded
        return encoded

    def collate(self, examples: Sequence[EncodedExample], length: int, rows: int) -> Batch:
        """A batch of `rows` rows, see `rcp.data.pack.collate`."""
        return collate(examples, length, self.max_segments, rows, pad_id=self._tokenizer.pad_id)


class TrainPipeline(Iterator[Batch]):
    """Endless batches, each epoch in another order; a pure function of the arguments and the state.

    A batch has the smallest of the static lengths that holds all its prompts.

    Args:
      encoded: the examples of an epoch; may be shared.
      batch_size: rows of a batch over all processes; batches run over the ends of epochs, so every one is full.
      seed: of the order. ordered: no shuffling, and examples whose pruned prompts will be about as long together.
      phases, repeats: the examples of an epoch in so many consecutive parts, as equal as can be; each is gone over
        `repeats` times, in a new order each time, before the next begins. With a task whose examples are ordered by
        difficulty this is a curriculum. An epoch then has every example `repeats` times.
      shard: (process, processes): this process gets its consecutive share of the rows of every batch. The length is
        chosen over the whole batch, so that all processes agree on it.
    """

    def __init__(
        self,
        encoded: EncodedTask,
        *,
        batch_size: int,
        seed: int,
        ordered: bool = False,
        phases: int = 1,
        repeats: int = 1,
        shard: tuple[int, int] = (0, 1),
    ):
        import grain

        if batch_size % shard[1]:
            raise UserError(f"config.data.batch_size = {batch_size}: not divisible by the {shard[1]} processes")
        self.encoded = encoded
        self._batch_size, self._shard = batch_size, shard
        if phases > len(encoded):
            raise UserError(f"config.data.phases = {phases}: expected at most the {len(encoded)} training examples")
        ends = [len(encoded) * phase // phases for phase in range(phases + 1)]
        parts = [grain.MapDataset.range(*ends[i : i + 2]).seed(seed + i).shuffle() for i in range(phases)]
        if ordered:
            parts = [grain.MapDataset.source(by_fixed_length([encoded[i] for i in range(len(encoded))]))]
        if phases * repeats > 1:
            parts = [grain.MapDataset.concatenate([part.repeat(repeats) for part in parts])]
        dataset = parts[0].repeat(None)
        if batch_size == 1:  # the length of an endless dataset's batches of one is over what grain can say
            dataset = dataset.map(lambda index: [index])
        else:
            dataset = dataset.batch(batch_size, batch_fn=list)
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __next__(self) -> Batch:
        examples = [self.encoded[int(i)] for i in next(self._iterator)]
        length = bucket(max(example.length for example in examples), self.encoded.lengths)
        assert length is not None  # EncodedTask has checked it
        process, processes = self._shard
        rows = self._batch_size // processes
        return self.encoded.collate(examples[process * rows : (process + 1) * rows], length, rows)

    def get_state(self) -> bytes:
        """The place in the stream, as JSON."""
        return json.dumps(self._iterator.get_state()).encode()

    def set_state(self, state: bytes | str | dict[str, Any]) -> None:
        """Goes on at the place where `get_state` was called, in the middle of an epoch too."""
        self._iterator.set_state(state if isinstance(state, dict) else json.loads(state))


def by_fixed_length(examples: Sequence[EncodedExample]) -> list[int]:
    """Their places in the order of the tokens that no pruning takes away.

    Prompts pruned to one budget are then about as long within a batch, and little of a static length is padding.
    """
    return sorted(range(len(examples)), key=lambda place: examples[place].fixed)


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
    positions: int | None = None,
    first: int = 0,
) -> tuple[list[Batch], dict[int, Example]]:
    """`count` examples from number `first` on, in batches of one length (the smallest that holds them: one compile).

    They come in the order of `by_fixed_length`; the last batch is filled up with rows of weight 0. Also returns the
    examples by their number, the `index` of the rows.

    `positions`: of the model, as in `EncodedTask`.

    Raises:
      UserError: the split has no example `first`.
    """
    encoded = EncodedTask(
        task,
        tokenizer,
        split,
        None if count is None else first + count,
        lengths=lengths,
        max_segments=max_segments,
        max_answer=max_answer,
        overlong=overlong,
        positions=positions,
    )
    numbers = range(first, len(encoded))
    if not numbers:
        raise UserError(f"config.eval.first is {first}: split {split!r} has {len(encoded)} examples, counted from 0")
    rows = [encoded[i] for i in numbers]
    length = bucket(max(row.length for row in rows), encoded.lengths)
    assert length is not None
    order = by_fixed_length(rows)
    parts = [[rows[i] for i in order[at : at + batch_size]] for at in range(0, len(rows), batch_size)]
    batches = [encoded.collate(part, length, batch_size) for part in parts]
    return batches, {i: encoded.examples[i] for i in numbers}
