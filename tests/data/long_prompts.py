"""The generated tasks, small enough for short prompts, and a tokenizer to measure them with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rcp.data.tasks.common_words import CommonWords
from rcp.data.tasks.documents import Documents
from rcp.data.tasks.generated import Generated
from rcp.data.tasks.needle import Needle, Passkey
from rcp.data.tasks.tracking import Tracking

MADE: dict[str, Callable[..., Generated]] = {
    "single": Needle,
    "multikey": lambda **fields: Needle(keys=3, digits=4, **fields),
    "multivalue": lambda **fields: Needle(values=3, digits=3, **fields),
    "multiquery": lambda **fields: Needle(keys=3, queries=2, **fields),
    "needles": lambda **fields: Needle(keys=0, **fields),
    "passkey": Passkey,
    "tracking": lambda **fields: Tracking(chains=2, hops=(1, 2), **fields),
    "variables": lambda **fields: Tracking(chains=1, hops=(2,), asks="variables", digits=7, **fields),
    "words": lambda **fields: CommonWords(common=2, times=40, other_times=2, **fields),
    "documents": lambda **fields: Documents(hops=(1, 2), **fields),
}


class Chunks:
    """A token is at most three letters or digits with the space before them, or a mark: many more than `pieces`."""

    vocab_size, pad_id, eos_id = 1 << 20, 0, 1

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [
            self._ids.setdefault(chunk, 2 + len(self._ids)) for chunk in re.findall(r"\s?\w{1,3}|\s?[^\w\s]|\s", text)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        known = {number: chunk for chunk, number in self._ids.items()}
        return "".join(known[int(i)] for i in ids)
