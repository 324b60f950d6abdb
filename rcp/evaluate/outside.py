"""A reader outside this process: another vendor's model that is sent the pruned *text* and answers with text.

What it reads has as many tokens as the budget, counted by our tokenizer in the context's part of the text sent: where
tokens merge or white space is added as the text is put together, the budget is met anew (`rcp.infer.exact`). How often
that was needed is measured (`rcp.evaluate.results.Sent`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rcp.data.text import Texts
from rcp.endpoint.client import Client
from rcp.evaluate.answers import Check, Decoding
from rcp.evaluate.budgets import Budget
from rcp.evaluate.reading import Picked
from rcp.evaluate.results import Sent
from rcp.infer.exact import Kept, meet
from rcp.infer.prompt import keep_and_rank
from rcp.nn.pruner import Cut, Granularity
from rcp.policies import Policy
from rcp.types import Batch, Role


class Said(NamedTuple):
    """As `rcp.nn.reader.Reading`; `nll_sum` is NaN where the endpoint gives no likelihood."""

    nll_sum: np.ndarray
    answer_tokens: np.ndarray
    exact: np.ndarray


class Outside:
    """The reader of a sweep behind an endpoint; see `rcp.evaluate.reading.Reader`.

    `scored`: whether it says how likely the gold answers are, which it is asked first of all.
    """

    def __init__(self, client: Client, texts: Texts, check: Check, decoding: Decoding):
        self.client, self.texts, self.check, self.decoding = client, texts, check, decoding
        self.scored = client.config.logprobs and client.nll(["Question: 1 + 1?\nAnswer:"], [" 2"]) is not None
        if client.config.logprobs and not self.scored:
            print("answer NLL: not available, the endpoint gives no log-probabilities of what it is sent")

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
    ) -> Picked:
        """The prompts whose text has `spend` context tokens.

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
        keep = ~context & (batch.role != Role.PAD)
        for row, mask in enumerate(masks):
            keep[row][inside[row]] = mask
        sent = Sent(spend, before, np.array([count(row, mask) for row, mask in enumerate(masks)]))
        return Picked(keep, np.sum(keep & context, axis=1), sent)

    def read(self, batch: Batch, keep: np.ndarray) -> Said:
        """The endpoint's answers to what masks leave of whole prompts, judged by the task."""
        real = np.flatnonzero(batch.weight > 0)
        sent = self.texts.of(batch, keep)
        asked, d = [sent[row].text for row in real], self.decoding
        examples = [self.texts.example(batch.index[row]) for row in real]
        drawn = {"temperature": d.temperature, "top_p": d.top_p, "seed": d.seed} if d.samples > 1 else {}
        said = self.client.texts(asked, samples=d.samples, **drawn)
        exact, nll = np.zeros(len(sent), bool), np.full(len(sent), np.nan)
        exact[real] = [self.check(d.chosen(texts), example) for texts, example in zip(said, examples)]
        if self.scored:
            nll[real] = self.client.nll(asked, [example.answer for example in examples])
        return Said(nll, np.sum(batch.role == Role.ANSWER, axis=1), exact)
