"""The trained scorer that comes with the repository, on the model it was trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rcp.data.tasks.base import examples_of
from rcp.data.tasks.needle import Needle
from rcp.infer.context import ContextModel
from rcp.infer.trained_eviction import load_eviction
from rcp.pretrained import load

TRAINED = Path(__file__).resolve().parents[2] / "experiments" / "results" / "trained" / "eviction"
pytestmark = pytest.mark.lax


def test_a_tenth_of_the_cache_holds_what_is_asked_for_later():
    """Texts of the test split, pruned before their questions are known."""
    loaded = load("smollm2-135m-instruct", dtype="float32")
    encode, decode = loaded.tokenizer.encode, loaded.tokenizer.decode
    examples = examples_of(Needle(tokens=256), loaded.tokenizer, "test", 3)
    model = ContextModel(loaded.model, load_eviction(TRAINED, loaded), eos_ids=(loaded.tokenizer.eos_id,))
    pruned = model.prune(model.read([encode("".join(example.context)) for example in examples]), keep_rate=0.1)
    np.testing.assert_array_equal(pruned.kept, pruned.asked)
    found = model.answer(pruned, [encode(example.question) for example in examples], max_new=10)
    for ids, example in zip(found, examples, strict=True):
        assert decode(ids).startswith(example.answer)
