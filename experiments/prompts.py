"""Prompts of about a given number of tokens, for measurements of time and of counts.

Worked examples from GSM8K's training rows before a training question; where its files are not found, sentences of the
task facts, which needs none.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from rcp.data.tasks.facts import Facts
from rcp.data.tasks.word_problems import Gsm8k
from rcp.types import Example, Tokenizer, UserError

GSM8K, FACTS = "gsm8k", "facts"


def long_prompts(tokenizer: Tokenizer, count: int, tokens: int) -> list[Example]:
    """`count` examples whose context and question have about `tokens` tokens together, the last segment cut to fit.

    Every segment ends with a blank line, so that the context as one text has the same segments.
    """
    try:
        sources = _gsm8k(count, tokens)
    except UserError as error:
        print(f"GSM8K is not used ({error}): prompts are made of facts", file=sys.stderr)
        sources = _facts(count, tokens)
    return [_filled(example, tokenizer, tokens) for example in sources]


def source_of(count: int, tokens: int) -> str:
    """What `long_prompts` makes these prompts of: `GSM8K` or `FACTS`."""
    try:
        _gsm8k(count, tokens)
    except UserError:
        return FACTS
    return GSM8K


def _gsm8k(count: int, tokens: int) -> list[Example]:
    """With more shots than fit: the shortest have about 50 tokens."""
    return list(Gsm8k(shots=max(2, tokens // 50)).examples("train", count))


def _facts(count: int, tokens: int) -> list[Example]:
    segments = max(4, tokens // 6)
    examples = Facts(segments=64).examples("train", count * -(-segments // 64))
    each = len(examples) // count
    return [
        replace(examples[i], context=tuple(s for e in examples[i * each : (i + 1) * each] for s in e.context))
        for i in range(count)
    ]


def _filled(example: Example, tokenizer: Tokenizer, tokens: int) -> Example:
    """The first segments of a context, as many as make up `tokens` tokens with the question."""
    room, kept = tokens - len(tokenizer.encode(example.question)), []
    for text in example.context:
        ids = tokenizer.encode(f"{text.strip()}\n\n")
        if len(ids) > room:
            cut = tokenizer.decode(ids[: max(room - 2, 0)]).strip()  # the blank line has up to two
            kept += [f"{cut}\n\n"] if cut else []
            break
        kept.append(f"{text.strip()}\n\n")
        room -= len(ids)
    return replace(example, instruction="", context=tuple(kept), support=None, forced=())
