"""llmlingua 0.2.2 beside our policy `llmlingua`: the same model, the same tokens, the same budget.

    python -m venv /tmp/beside && /tmp/beside/bin/pip install llmlingua==0.2.2 transformers==4.46.3 torch==2.13.0
    python -m experiments.beside_llmlingua --python=/tmp/beside/bin/python [--prompts=16 --tokens=1000 --keep-rate=0.5]

Both read the same ids in float32, one prompt at a time and in turn, in blocks of 200 tokens (llmlingua's default). Its
context filter is run too, but what is compared token by token is the token stage on the whole context: at half the
tokens our first stage lets everything pass, theirs up to 100 tokens above the budget. llmlingua's code decides about a
token by the self-information of the *next* one (`get_compressed_input` puts losses, which begin with the second token,
beside tokens, which begin with the first); the paper, and ours, by its own. So ours is also compared moved by a token,
in the whole context and in the first block, before which nothing is compressed. Seconds are of this machine as it is;
only their ratio counts.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.beside import (
    arguments_of,
    both_sides,
    information,
    jaccard,
    kept_places,
    ours,
    rank_correlation,
    table,
)
from rcp.data.pack import EncodedExample, collate, round_up
from rcp.policies import LLMLingua
from rcp.pretrained import PretrainedTokenizer
from rcp.types import Batch, Role, UserError

BLOCK = 200
INSTALL = "pip install llmlingua==0.2.2 transformers==4.46.3 torch==2.13.0 in an environment of its own"


def encoded_jointly(tokenizer: PretrainedTokenizer, segments: list[str]) -> EncodedExample:
    """The segments with blank lines between them as one text, whose tokens are divided among them.

    A token belongs to the segment in which it begins, so that the ids are those of the text.
    """
    whole = tokenizer.fast.encode("\n\n".join(segments), add_special_tokens=False)
    ends = np.cumsum([len(text) + 2 for text in segments])
    number = np.searchsorted(ends, [start for start, _ in whole.offsets], side="right")
    ids = np.asarray(whole.ids, np.int32)
    pieces = tuple(ids[number == s] for s in range(len(segments)))
    one, none = np.asarray([tokenizer.eos_id], np.int32), np.zeros(0, np.int32)
    forced = tuple(np.zeros(len(piece), bool) for piece in pieces)
    return EncodedExample(none, pieces, one, none, forced, np.full(len(pieces), -1, np.int8))


def moved(kept: np.ndarray) -> np.ndarray:
    """The choice bool [tokens] that the same values make where each decides about the token before its own."""
    return np.append(kept[1:], False)


def compare(policy: LLMLingua, batch: Batch, budget: int, found: dict[str, Any], filtered: dict[str, Any]) -> dict:
    """One prompt: what we keep and theirs."""

    mine, seconds = ours(policy, batch, budget, "two_stage")
    context = np.asarray(batch.role[0]) == Role.CONTEXT
    if np.asarray(batch.tokens)[0, context].tolist() != found["ids"]:
        raise UserError("the two sides do not read the same tokens")
    theirs = kept_places(found["ids"], found["left"])
    surprise = np.asarray(information(policy.graph, policy.state, batch))[0, context]
    difference = np.abs(surprise - found["information"])[1:]
    return {
        "tokens of the context": len(mine),
        "tokens asked for": budget,
        "tokens ours keeps": int(mine.sum()),
        "tokens llmlingua keeps": len(found["left"]),
        "tokens llmlingua keeps, its context filter on": len(filtered["left"]),
        "kept by both, of those kept by either": jaccard(mine, theirs),
        "the same, ours moved to the token before": jaccard(moved(mine), theirs),
        "the same in the first block": jaccard(moved(mine)[: BLOCK - 1], theirs[: BLOCK - 1]),
        "the same of two random halves": budget / (2 * len(mine) - budget),
        "rank correlation of self-information": rank_correlation(surprise[1:], np.asarray(found["information"])[1:]),
        "largest difference of self-information, nats": float(difference.max()),
        "seconds, ours": seconds,
        "seconds, llmlingua": found["seconds"],
        "seconds, llmlingua over ours": found["seconds"] / seconds,
    }


def main() -> int:
    arguments = arguments_of(__doc__)
    try:
        pretrained, examples, other = both_sides(arguments, "foreign_llmlingua", INSTALL)
        texts = [[segment.strip() for segment in example.context] for example in examples]
        encoded = [encoded_jointly(pretrained.tokenizer, segments) for segments in texts]
        length = round_up(max(example.length for example in encoded), 64)
        widest = round_up(max(len(piece) for example in encoded for piece in example.context), 16)
        policy = LLMLingua.of(pretrained.model, length=widest, block=BLOCK)
        segments = max(map(len, texts))
        rows = []
        for text, example in zip(texts, encoded):
            budget = int(arguments.keep_rate * sum(map(len, example.context)))
            request = {"segments": text, "target": budget, "block": BLOCK}
            filtered, found = other.ask(**request, filter=True), other.ask(**request, filter=False)
            batch = jax.tree.map(jnp.asarray, collate([example], length, segments, 1))
            rows.append(compare(policy, batch, budget, found, filtered))
            print(f"{len(rows)} of {len(texts)} prompts", file=sys.stderr)
        other.close()
    except UserError as error:
        print(f"beside_llmlingua: {error}", file=sys.stderr)
        return 2
    table(rows, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
