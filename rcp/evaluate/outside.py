"""A reader outside this process: another vendor's model that is sent the pruned *text* and answers with text.

What it reads has as many tokens as the budget, counted by our tokenizer in the context's part of the text sent: where
tokens merge or white space is added as the text is put together, the budget is met anew (`rcp.infer.exact`). How often
that was needed is measured and written to `sent.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rcp.data.text import Texts
from rcp.endpoint.client import Client
from rcp.evaluate.answers import Check, Decoding
from rcp.evaluate.budgets import Budget
from rcp.infer.exact import Kept, meet
from rcp.infer.prompt import keep_and_rank
from rcp.nn.pruner import Cut, Granularity, compact
from rcp.policies import Policy
from rcp.types import Batch, Role


class Said(NamedTuple):
    """As `rcp.nn.reader.Reading`; `nll_sum` is NaN where the endpoint gives no likelihood."""

    nll_sum: np.ndarray
    answer_tokens: np.ndarray
    exact: np.ndarray


@dataclass
class Counts:
    """Of one setting: tokens asked for, in the text of just as many of the pruner's, and in the text that was sent."""

    asked: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def add(self, asked: int, first: int, sent: int) -> None:
        for numbers, number in ((self.asked, asked), (self.first, first), (self.sent, sent)):
            numbers.append(number)

    def summary(self) -> dict[str, Any]:
        """Means and shares of prompts, fit for json. Over: more tokens than asked for."""
        asked, first, sent = map(np.array, (self.asked, self.first, self.sent))
        return {
            "n": len(asked),
            "asked": float(asked.mean()),
            "unmended": float(first.mean()),
            "unmended_over": float(np.mean(first > asked)),
            "sent": float(sent.mean()),
            "sent_over": float(np.mean(sent > asked)),
            "sent_exactly": float(np.mean(sent == asked)),
        }


class Outside:
    """The reader of a sweep behind an endpoint; see `rcp.evaluate.reading.Reader`."""

    def __init__(self, client: Client, texts: Texts, check: Check, decoding: Decoding):
        self.client, self.texts, self.check, self.decoding = client, texts, check, decoding
        self.counts: dict[tuple[str, float], Counts] = {}
        self.scored = client.config.logprobs

    def prune(
        self,
        policy: Policy,
        budget: Budget,
        scores: Any,
        batch: Batch,
        spend: Any,
        *,
        granularity: Granularity,
        cut: Cut,
    ) -> tuple[np.ndarray, np.ndarray, Batch]:
        """The keep mask, the context tokens kept, and the compacted prompts: those whose text has `spend` tokens.

        What a method does not fill (the whole context, no context, whole segments alone) is sent as it is.
        """
        context, spend = batch.role == Role.CONTEXT, np.asarray(spend)
        inside = list(context)

        def at(tokens: np.ndarray) -> list[Kept]:
            counts = np.asarray(tokens, np.int32)
            keep, rank = map(np.asarray, keep_and_rank(scores, batch, counts, granularity=granularity, cut=cut))
            return [Kept(keep[i][part], rank[i][part]) for i, part in enumerate(inside)]

        def count(row: int, mask: np.ndarray) -> int:
            text = self.texts.context(batch, row, mask)
            return len(self.texts.tokenizer.encode(text)) if text else 0

        masks = [found.mask for found in at(spend)]
        before = np.array([count(row, mask) for row, mask in enumerate(masks)])
        fills = policy.swept & (spend == np.asarray(budget.of(batch))) & (spend < context.sum(axis=1))
        wanted = np.where(fills, spend, before)
        if np.any(before != wanted):
            met, _ = meet(at, count, wanted, [row[part] for row, part in zip(batch.forced, inside)])
            masks = [new if fills[row] else masks[row] for row, new in enumerate(met)]
        counts = self.counts.setdefault((policy.name, budget.rate), Counts())
        keep = ~context & (batch.role != Role.PAD)
        for row, mask in enumerate(masks):
            keep[row][inside[row]] = mask
            if batch.weight[row] > 0:
                counts.add(int(spend[row]), int(before[row]), count(row, mask))
        short = jax.tree.map(np.asarray, compact(batch, keep, batch.role.shape[1]))
        return keep, np.sum(keep & context, axis=1), short

    def read(self, prompts: Batch) -> Said:
        """The endpoint's answers to compacted prompts, judged by the task."""
        real = np.flatnonzero(prompts.weight > 0)
        sent = self.texts.of(prompts)
        asked, d = [sent[row].text for row in real], self.decoding
        examples = [self.texts.example(prompts.index[row]) for row in real]
        drawn = {"temperature": d.temperature, "top_p": d.top_p, "seed": d.seed} if d.samples > 1 else {}
        said = self.client.texts(asked, samples=d.samples, **drawn)
        exact, nll = np.zeros(len(sent), bool), np.full(len(sent), np.nan)
        exact[real] = [self.check(d.chosen(texts), example) for texts, example in zip(said, examples)]
        if self.scored:
            found = self.client.nll(asked, [example.answer for example in examples])
            if found is None:
                self.scored = False
                print("answer NLL: not available, the endpoint gives no log-probabilities of what it is sent")
            else:
                nll[real] = found
        return Said(nll, np.sum(prompts.role == Role.ANSWER, axis=1), exact)

    def write(self, path: Path) -> None:
        """What was asked for and sent, one object a setting."""
        found = [
            {"method": method, "keep_rate_asked": rate, **counts.summary()}
            for (method, rate), counts in self.counts.items()
        ]
        if found:  # a report that needed no new answers leaves the file of the one that did
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
