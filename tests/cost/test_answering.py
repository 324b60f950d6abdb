"""From which prompt length on pruning pays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rcp.config import ScorerSection
from rcp.cost.answering import Setting, break_even, evicted, pruned, whole
from rcp.cost.device import DEVICES
from rcp.cost.work import SINGLE
from rcp.nn.parameters import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=2048, d_model=256, n_layers=12, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=768, max_positions=4096
)
SETTING = Setting(SHAPE, ScorerSection(layer=4, width=64), SINGLE, batch=1, fixed=20, new=8, keep_rate=0.25, segments=8)


def flops(work):
    return work.flops


def seconds(work):
    return DEVICES["h100-sxm"].seconds(work, "float32")


def pays(setting, measure, tokens):
    context = tokens - setting.fixed
    return pruned(setting, context).total(measure) < whole(setting, context).total(measure)


@pytest.mark.parametrize("measure", [flops, seconds])
def test_it_pays_from_there_on_and_not_just_before(measure):
    found = break_even(SETTING, measure, 4096)
    assert found is not None and found > SETTING.fixed + 1
    assert pays(SETTING, measure, found) and not pays(SETTING, measure, found - 1)
    assert all(pays(SETTING, measure, tokens) for tokens in range(found, 4096, 97))


def test_keeping_everything_never_pays():
    assert break_even(replace(SETTING, keep_rate=1.0), flops, 4096) is None


def test_a_dearer_scorer_or_a_higher_keep_rate_pays_later_or_never():
    def of(**changes):
        scorer = replace(SETTING.scorer, **{k: v for k, v in changes.items() if k == "layer"})
        rest = {k: v for k, v in changes.items() if k != "layer"}
        return break_even(replace(SETTING, scorer=scorer, **rest), flops, 100_000) or 10**9

    assert of(layer=1) <= of(layer=4) <= of(layer=8)
    assert of(keep_rate=0.1) <= of(keep_rate=0.25) <= of(keep_rate=0.5)


def test_a_memory_bound_reading_pays_later_than_its_operations_say():
    """Weights are read whole for any number of tokens: on a device a short prompt is no slower than a pruned one."""
    assert break_even(SETTING, seconds, 4096) > break_even(SETTING, flops, 4096)


def test_the_budget_is_that_of_the_pruner():
    assert [replace(SETTING, keep_rate=rate).kept(n) for rate, n in ((0.29, 100), (0.1, 5), (0.5, 0))] == [29, 1, 0]


def test_the_parts_of_an_answer():
    short, full = pruned(SETTING, 400), whole(SETTING, 400)
    assert (short.tokens, full.tokens) == (120, 420)
    assert full.score.flops == 0 and short.score.flops > 0
    assert short.total(flops) == pytest.approx((short.score + short.read + short.decode).flops)
    assert short.step.bytes < full.step.bytes and short.read.flops < full.read.flops


def test_a_pruned_cache_is_read_whole_and_decoded_short():
    short, full, late = pruned(SETTING, 400), whole(SETTING, 400), evicted(SETTING, 400)
    assert late.score.flops == 0 and late.tokens == full.tokens
    assert late.step == short.step and late.slots == short.slots
    assert late.read.products == pytest.approx(full.read.products, rel=0.02)  # a cache with room for the answer less
