"""What the experiments on pruning time, exact budgets and other implementations are built from."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import (
    bench_prune,
    bench_step,
    beside,
    beside_kvpress,
    beside_llmlingua,
    beside_selective,
    budget_exact,
    eviction_look,
)
from experiments.prompts import long_prompts, source_of
from rcp.data.tasks.jsonl import split_segments
from rcp.infer.prompt import PrunedPrompt
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.pretrained import hf
from rcp.pretrained.tokenizer import PretrainedTokenizer, from_merges
from rcp.types import UserError
from tests.evaluate.own_data import ROOT
from tests.infer.test_prompt import Letters
from tests.tiny import VOCABULARY, Prompt, batch_of, tiny_model

pytestmark = pytest.mark.lax
TINY = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 24}


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def word_tokenizer() -> PretrainedTokenizer:
    """Byte-level BPE with a few merges, the line end twice among them."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["Ċ Ċ", "b o", "bo b", "Ġ bob"]
    tokens = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), "<end>"]
    kinds = [1] * (len(tokens) - 1) + [3]
    end = len(tokens) - 1
    return from_merges(tokens, merges, kinds, "smollm", bos_id=None, eos_id=end, pad_id=end, chat_template=None)


def test_prompts_have_the_tokens_asked_for_and_their_segments_survive_as_text(no_data, capsys):
    examples = long_prompts(Letters(), 3, 700)
    said = capsys.readouterr()
    assert "made of facts" in said.err and not said.out and source_of(3, 700) == "facts"
    for example in examples:
        total = len(Letters().encode("".join(example.context) + example.question))
        assert 690 <= total <= 700
        assert split_segments("".join(example.context)) == example.context and len(example.context) > 5


def test_a_model_that_is_handed_over_reads_back_the_same(tmp_path: Path):
    tokenizer = word_tokenizer()
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, tie_embeddings=False, **TINY)
    model = Transformer(config, rngs=nnx.Rngs(0), dtype="float32")
    beside.write_model(tmp_path, model, tokenizer)
    back, text = hf.read_model(tmp_path, "float32"), "bob saw 12\n\nbob."
    ids = np.asarray([tokenizer.encode(text)], np.int32)
    np.testing.assert_array_equal(hf.read_tokenizer(tmp_path).encode(text), ids[0])
    np.testing.assert_allclose(back(ids), model(ids), rtol=1e-5, atol=1e-6)
    odd = Transformer(TransformerConfig(vocab_size=8, qkv_bias=True, **TINY), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="only a plain Llama"):
        beside.write_model(tmp_path, odd, tokenizer)


def test_both_sides_read_the_tokens_of_one_text():
    tokenizer, segments = word_tokenizer(), ["bob\nsaw", "a bob", "bob"]
    example = beside_llmlingua.encoded_jointly(tokenizer, segments)
    assert np.concatenate(example.context).tolist() == tokenizer.encode("\n\n".join(segments))
    pieces = [tokenizer.decode(ids.tolist()) for ids in example.context]
    assert pieces == ["bob\nsaw\n\n", "a bob\n\n", "bob"]


def test_every_part_is_timed_by_every_run_after_what_compiles(capsys):
    called: list[tuple[str, int]] = []
    text = bench_prune.TEXT  # its parts differ in length, the others' last one alone
    runs = {name: lambda part, name=name: called.append((name, part)) for name in ("a", text)}
    seconds = bench_prune.measure(runs, 3)
    compiled, timed = called[:5], called[5:]
    assert compiled == [("a", 0), ("a", 2), (text, 0), (text, 1), (text, 2)]
    assert timed == [(text, 0), ("a", 0), ("a", 1), (text, 1), (text, 2), ("a", 2)]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, text: 3}


def test_the_original_gets_every_prompt_of_a_part_with_its_own_target(no_data):
    class Asked(beside.Foreign):
        def __init__(self):
            self.requests = []

        def ask(self, **request):
            self.requests.append(request)
            return {}

    examples, other = long_prompts(Letters(), 3, 120), Asked()
    run = bench_prune.original_of(other, Letters(), examples, 0.5, 2)
    run(1)
    (last,) = other.requests
    assert last["target"] == sum(map(len, examples[2].context)) // 2 and not last["look"]
    assert last["segments"] == [segment.strip() for segment in examples[2].context]
    run(0)
    assert len(other.requests) == 3


def test_agreement_is_measured_on_places():
    np.testing.assert_array_equal(beside.kept_places([5, 6, 5, 7, 8], [5, 7]), [False, False, True, True, False])
    assert beside.jaccard(np.array([True, True, False]), np.array([False, True, True])) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(beside_llmlingua.moved(np.array([True, False, True])), [False, True, False])
    a = np.array([0.1, 3.0, 2.0, 9.0])
    assert beside.rank_correlation(a, a**3) == pytest.approx(1)
    assert beside.rank_correlation(a, -a) == pytest.approx(-1)
    np.testing.assert_array_equal(beside_selective.spread(["a b", " \n", "cde"], [1, 2, 3]), [1, 1, 3, 3, 3])
    assert beside_selective.sentences("Q: one  and\ntwo. Dr. X? A: y") == ["Q: one and two.", "Dr. X?", "A: y"]


def test_scores_of_cache_entries_are_compared_where_both_sides_have_them():
    theirs = np.random.default_rng(0).random((2, 1, 80))
    mine = theirs.copy()
    mine[..., -64:] += 5  # SnapKV's window, which ranks above all on our side
    theirs[..., -64:] = theirs.max()
    found = beside_kvpress.compare("snapkv", mine, theirs, 0.9)
    assert list(found.values()) == pytest.approx([0, 1, 1])
    mine[..., 0] -= 1
    assert beside_kvpress.compare("snapkv", mine, theirs, 0.9)["snapkv: rank correlation"] < 1


@pytest.mark.parametrize("script", ["foreign_llmlingua", "foreign_selective", "foreign_kvpress"])
def test_what_is_missing_on_the_other_side_is_said(script: str, tmp_path: Path):
    """This Python has neither llmlingua nor selective-context nor kvpress."""
    other = beside.Foreign(sys.executable, script, "pip install it")
    with pytest.raises(UserError, match=r"No module named .*; pip install it"):
        other.ask(model=str(tmp_path))
    other.process.wait(10)
    with pytest.raises(UserError, match=r"cannot be run .*: pip install it"):
        beside.Foreign(str(tmp_path / "no-python"), script, "pip install it")


def test_shares_and_gaps_are_counted_on_the_text():
    def pruned(text: str, asked: int, unmended: int) -> PrunedPrompt:
        return PrunedPrompt(text, 10, len(text), asked, unmended, 1, (0,))

    found = budget_exact.summary([pruned("abc", 3, 5), pruned("ab", 4, 4), pruned("abcdefghij", 99, 10)], Letters())
    assert (found["equal"], found["below"], found["above"]) == pytest.approx((2 / 3, 1 / 3, 0))
    assert (found["largest_gap"], found["unmended_largest_excess"]) == (2, 2)
    assert (found["unmended_equal"], found["unmended_above"]) == pytest.approx((2 / 3, 1 / 3))


def test_every_scorer_that_is_timed_scores():
    batch = jax.tree.map(jax.numpy.asarray, batch_of((Prompt((3, 2, 4)),), 16, 3))
    for score in bench_prune.scorers(tiny_model(layers=4), VOCABULARY).values():
        found = score(batch)
        assert found.segments.shape == (1, 3) and len(set(np.asarray(found.segments[0]).tolist())) == 3


def test_ratios_are_of_the_same_part(no_data):
    seconds = {bench_prune.PREFILL: [1.0, 2.0, 4.0], bench_prune.ALONE: [0.1, 0.4, 0.4]}
    seconds[bench_prune.THEIRS] = [2.0, 4.0, 8.0]
    alone = bench_prune.report(seconds)[1]
    assert alone["over_prefill"] == pytest.approx(0.1) and alone["over_llmlingua"] == pytest.approx(0.05)
    assert (alone["over_prefill_low"], alone["over_prefill_high"]) == pytest.approx((0.1, 0.2))
    assert alone["seconds"] == pytest.approx(0.9)
    original = bench_prune.report(seconds | {bench_prune.ORIGINAL: [1.0, 4.0, 2.0]})[1]
    assert original["over_llmlingua"] == pytest.approx(0.1) and original["over_llmlingua_high"] == pytest.approx(0.2)
    batches = bench_prune.batches_of(long_prompts(Letters(), 3, 120), Letters(), 2)
    assert [len(batch.tokens) for batch in batches] == [2, 1]
    assert {batch.tokens.shape[1] for batch in batches} == {120} and not any((b.role == 4).any() for b in batches)


def test_the_original_is_timed_in_its_own_dtype_and_judged_like_for_like(capsys):
    assert bench_prune.parsed([]).dtype == "bfloat16" and bench_prune.parsed(["--dtype=float32"]).dtype == "float32"
    assert bench_prune.parsed(["--python=p"]).dtype == "float32"
    assert bench_prune.main(["--python=p", "--dtype=bfloat16"]) == 2
    assert "bench_prune: --dtype=bfloat16: with --python expected float32" in capsys.readouterr().err
    names = [bench_prune.PREFILL, bench_prune.ALONE, *bench_prune.LAYERS, bench_prune.TEXT, bench_prune.THEIRS]
    seconds = {name: [1.0] for name in names} | {bench_prune.THEIRS: [5.0], bench_prune.ORIGINAL: [2.0]}
    found = {name: ratio for name, ratio, _ in bench_prune.verdicts(bench_prune.report(seconds))}
    assert found["stand-alone, text to text over llmlingua, the original, text to text"] == 0.5
    assert found["stand-alone over llmlingua, the original, text to text"] == 0.5
    del seconds[bench_prune.ORIGINAL]
    found = {name: ratio for name, ratio, _ in bench_prune.verdicts(bench_prune.report(seconds))}
    assert found["stand-alone over llmlingua"] == 0.2 and not any("text to text" in name for name in found)
    assert bench_prune.main(["--model=absent", "--batch=1"]) == 2 and "bench_prune: " in capsys.readouterr().err


def test_what_cannot_be_measured_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    def absent(name: str) -> Path:
        raise UserError(f"no model {name!r}")

    monkeypatch.setattr(budget_exact, "locate", absent)
    assert budget_exact.main(["--prompts=1"]) == 2
    assert capsys.readouterr().err == "budget_exact: no model 'smollm2-135m-instruct'\n"
    assert bench_step.main([f"--config={ROOT}/configs/chain.py"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bench_step: ") and "has no frozen pretrained model to compare with" in err
    assert eviction_look.main([f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"eviction_look: no config file {tmp_path}")
