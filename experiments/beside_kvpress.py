"""kvpress 0.5.5 beside our eviction policies: the same model, prompts and entries.

    python -m venv /tmp/kvpress && /tmp/kvpress/bin/pip install torch==2.13.0 'transformers>=4.56,<5.3' kvpress==0.5.5
    python -m experiments.beside_kvpress --python=/tmp/kvpress/bin/python [--prompts=16 --tokens=1000 --keep-rate=0.5]

Both sides score the entries of every layer and head in float32, without evicting any. Printed for each policy: the
largest difference of a score, over the largest score; the rank correlation; and what share of the entries that either
keeps at the keep rate both keep. Entries that a method never evicts (windows, sinks) get a score of another kind on
each side, above all others on both: they count in the last number alone.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.beside import arguments_of, both_sides, jaccard, rank_correlation, table
from rcp.eviction import H2O, TOVA, EvictionPolicy, ExpectedAttention, KeyDiff, KVzip, Repeat, SnapKV, all_needs
from rcp.eviction.compaction import candidates
from rcp.eviction.prompt import read_prompt, scores
from rcp.eviction.reconstruction import repeat_of
from rcp.types import UserError

INSTALL = "see the head of experiments/beside_kvpress.py for what to install"
POLICIES: dict[str, EvictionPolicy] = {
    "snapkv": SnapKV(),
    "tova": TOVA(),
    "keydiff": KeyDiff(),
    "expected_attention": ExpectedAttention(),
    "observed": H2O(recent=0.0, per_query=True),
    "kvzip": KVzip(),
}
NEVER_EVICTED = {"snapkv": (0, 64), "tova": (0, 1), "expected_attention": (4, 0), "kvzip": (4, 0)}
"""How many first and last entries a method never evicts."""


def scorer(graph: Any, repeat: Repeat) -> Any:
    """The compiled function from parameters, tokens and validity to every policy's scores of the entries."""
    needs = all_needs(*(policy.needs for policy in POLICIES.values()))

    @jax.jit
    def run(params: Any, tokens: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graph, params)
        read = read_prompt(model, tokens, valid=valid, needs=needs, repeat=repeat)
        found = candidates(read.cache)
        return {name: scores(model, found, read.statistics, policy) for name, policy in POLICIES.items()}

    return run


def compare(name: str, mine: np.ndarray, theirs: np.ndarray, rate: float) -> dict[str, float]:
    """Of one prompt; scores [layers, kv_heads, entries]."""
    first, last = NEVER_EVICTED.get(name, (0, 0))
    inside = slice(first, mine.shape[-1] - last)
    a, b = (x[..., inside].reshape(-1, mine.shape[-1] - first - last) for x in (mine, theirs))
    count = max(1, int(rate * mine.shape[-1]))
    kept = [np.argsort(-x, axis=-1, kind="stable")[..., :count] for x in (mine, theirs)]
    masks = [np.zeros(x.shape, bool) for x in (mine, theirs)]
    for mask, places in zip(masks, kept):
        np.put_along_axis(mask, places, True, axis=-1)
    return {
        f"{name}: largest difference over the largest score": float(np.abs(a - b).max() / np.abs(b).max()),
        f"{name}: rank correlation": float(np.mean([rank_correlation(x, y) for x, y in zip(a, b)])),
        f"{name}: kept by both, of those kept by either": jaccard(*masks),
    }


def main() -> int:
    arguments = arguments_of(__doc__)
    try:
        pretrained, examples, other = both_sides(arguments, "foreign_kvpress", INSTALL)
        graph, params = nnx.split(pretrained.model)
        run, rows = scorer(graph, repeat_of(pretrained.tokenizer)), []
        for example in examples:
            ids = pretrained.tokenizer.encode("".join(example.context))[: arguments.tokens]
            theirs = other.ask(ids=ids)
            there = np.arange(arguments.tokens)[None] < len(ids)
            padded = np.pad(ids, (0, arguments.tokens - len(ids)))[None]
            mine = run(params, jnp.asarray(padded, jnp.int32), jnp.asarray(there))
            row = {}
            for name in POLICIES:
                scored = np.asarray(mine[name])[0][..., : len(ids)]
                row |= compare(name, scored, np.asarray(theirs[name]), arguments.keep_rate)
            rows.append(row)
            print(f"{len(rows)} of {len(examples)} prompts", file=sys.stderr)
        other.close()
    except UserError as error:
        print(f"beside_kvpress: {error}", file=sys.stderr)
        return 2
    table(rows, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
