"""The trained runs that come with the repository, on the model they were trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rcp.data.tasks.base import examples_of
from rcp.data.tasks.handwritten import HANDWRITTEN
from rcp.data.tasks.needle import Needle
from rcp.infer.context import ContextModel
from rcp.infer.prompt import pruner_of
from rcp.infer.trained import load_trained
from rcp.infer.trained_eviction import load_eviction
from rcp.pretrained import load

TRAINED = Path(__file__).resolve().parents[2] / "experiments" / "results" / "trained"
pytestmark = pytest.mark.lax


@pytest.mark.parametrize("run", ["eviction", "eviction_text"])
def test_a_tenth_of_the_cache_holds_what_is_asked_for_later(run: str):
    """Texts of the test split, pruned before their questions are known."""
    loaded = load("smollm2-135m-instruct", dtype="float32")
    encode, decode = loaded.tokenizer.encode, loaded.tokenizer.decode
    examples = examples_of(Needle(tokens=256), loaded.tokenizer, "test", 3)
    model = ContextModel(loaded.model, load_eviction(TRAINED / run, loaded), eos_ids=(loaded.tokenizer.eos_id,))
    pruned = model.prune(model.read([encode("".join(example.context)) for example in examples]), keep_rate=0.1)
    np.testing.assert_array_equal(pruned.kept, pruned.asked)
    found = model.answer(pruned, [encode(example.question) for example in examples], max_new=10)
    for ids, example in zip(found, examples, strict=True):
        assert decode(ids).startswith(example.answer)


def test_worked_examples_are_chosen_without_the_files_that_the_pruner_was_trained_on(monkeypatch):
    """Of eight examples the tokens of a few, exactly: one has lost its beginning, tokens of another may fill up."""
    monkeypatch.delenv("RCP_DATA_DIR", raising=False)
    shots = [f"Question: {problem.question}\nAnswer: {problem.solution}" for problem in HANDWRITTEN]
    pruner = pruner_of(load_trained(TRAINED / "rcp_math"))
    question = "Question: Tom has 3 boxes of 12 pencils and gives 7 away. How many are left?\nAnswer:"
    assert pruner.groups == ("sentences", "equations")
    for keep_tokens, group in ((100, ""), (200, "sentences"), (200, "equations")):
        (found,) = pruner(["\n\n".join(shots)], [question], keep_tokens=keep_tokens, group=group)
        assert found.kept == found.asked == keep_tokens and 0 < len(found.kept_segments) < len(shots)
        whole = sum(shots[number] in found.text for number in found.kept_segments)
        assert whole >= len(found.kept_segments) - 2


def test_examples_of_the_question_s_kind_are_chosen_among_others():
    """By the run that learned from draws judged once."""
    product = "Q: Solve the following multiplication: {}. Give only the result as your final answer.\nA:{}"
    year = "Q: Is {} a leap year? Answer with Yes or No.\nA:{}"
    shots = [product.format("3 * 4", " 12"), year.format("1996", " Yes"), year.format("2041", " No")]
    shots += [product.format("8 * 0", " 0"), year.format("1907", " No"), product.format("7 * 5", " 35")]
    pruner = pruner_of(load_trained(TRAINED / "reasoning"))
    for question, kept in ((product.format("4 * 6", ""), {0, 3, 5}), (year.format("2016", ""), {1, 2, 4})):
        (found,) = pruner(["\n\n".join(shots)], [question], keep_tokens=50)
        assert found.kept == found.asked == 50 and set(found.kept_segments) <= kept
