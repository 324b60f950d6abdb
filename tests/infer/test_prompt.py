"""Pruning a user's own text, with a scorer that likes long words."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.data.tasks.common_words import CommonWords
from rcp.data.tasks.documents import Documents
from rcp.data.tasks.jsonl import split_segments
from rcp.infer.prompt import PromptPruner, PrunedPrompt
from rcp.nn.pruner import Scores
from rcp.types import Batch, Role, UserError

pytestmark = pytest.mark.lax


class Letters:
    """A tokenizer with a token a byte."""

    vocab_size, pad_id, eos_id = 258, 256, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def score(batch: Batch, budget: jax.Array) -> Scores:
    """Likes late segments and, within the context, late tokens."""
    tokens = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1], dtype=jnp.float32), batch.tokens.shape)
    segments = jnp.broadcast_to(jnp.arange(batch.support.shape[1], dtype=jnp.float32), batch.support.shape)
    return Scores(tokens=tokens, segments=segments)


PRUNER = PromptPruner(score, Letters(), "segment", max_tokens=300)
TEXT = "one apple\n\ntwo pears \n \nthree\nlines\n\n\nfour"


def test_segments_are_cut_at_blank_lines_and_nothing_is_lost() -> None:
    assert split_segments(TEXT) == ("one apple\n\n", "two pears \n \n", "three\nlines\n\n\n", "four")
    assert "".join(split_segments(TEXT)) == TEXT
    assert split_segments(" \n\n ") == ()
    assert split_segments("a\n\n") == ("a\n\n",)


def test_whole_segments_are_kept_letter_by_letter() -> None:
    (found,) = PRUNER([TEXT], ["which?"], keep_tokens=4 + 14)
    assert found.text == "three\nlines\n\n\nfour"
    assert (found.kept, found.asked, found.tokens) == (18, 18, len(TEXT))
    assert (found.segments, found.kept_segments, found.note) == (4, (2, 3), "")


def test_the_last_segment_that_fits_in_part_gives_its_first_tokens() -> None:
    (found,) = PRUNER([TEXT], ["which?"], keep_tokens=9)
    assert found.text == "th\n\n\nfour", "a segment that is cut keeps the blank lines after it"
    assert found.kept == found.asked == 9


def test_batch_gives_what_each_prompt_gives_alone() -> None:
    contexts = [TEXT, "a\n\nb\n\nc", "x" * 70]
    questions = ["q", "longer question?", "r"]
    together = PRUNER(contexts, questions, keep_rate=0.4)
    alone = [PRUNER([c], [q], keep_rate=0.4)[0] for c, q in zip(contexts, questions)]
    assert together == alone
    assert [found.asked for found in together] == [int(0.4 * found.tokens) for found in together]
    assert [found.asked - found.kept for found in together] == [0, 1, 0], 'of "b, c" two tokens hold "c" alone'


def test_budget_above_the_context_keeps_it_whole_and_says_so() -> None:
    (found,) = PRUNER([TEXT], ["q"], keep_tokens=1000)
    assert found.text == TEXT
    assert "the budget of 1000 tokens is above the context's" in found.note and "kept whole" in found.note
    assert PRUNER([TEXT], ["q"], keep_rate=1.0)[0].text == TEXT


def test_forced_spans_are_kept() -> None:
    (found,) = PRUNER([TEXT], ["q"], keep_tokens=5, force=["apple"])
    assert found.text == "apple"
    assert found.kept == 5
    (found,) = PRUNER([TEXT], ["q"], keep_tokens=19, force=["ears", "es"])
    assert found.text == "ears \n \nt es\n\n\nfour" and found.kept == 19, "the scorer likes the last segment best"
    (found,) = PRUNER([TEXT], ["q"], keep_tokens=6, force=["ears", "es"])
    assert found.text == "ears \n \nes" and (found.asked, found.kept) == (6, 10), "what is forced needs its separator"
    with pytest.raises(UserError, match=r"budget of 4 tokens is below the 5 tokens that must be kept .*at least 5"):
        PRUNER([TEXT], ["q"], keep_tokens=4, force=["apple"])
    with pytest.raises(UserError, match="not a regular expression"):
        PRUNER([TEXT], ["q"], keep_tokens=4, force=["("])


@pytest.mark.parametrize("granularity", ["token", "segment", "two_stage"])
def test_forced_numbers_stay_the_numbers_of_the_text(granularity) -> None:
    text = "\n\n".join(f"In room {n}, 3,5{n}0 of {1900 + n} were red." for n in range(4))
    pruner = PromptPruner(score, Letters(), granularity, max_tokens=500)
    numbers = re.findall(r"[\d,]*\d", text)
    for asked in (80, 87, 88, 95, 110):
        (found,) = pruner([text], ["q"], keep_tokens=asked, force=[r"[\d,]*\d"])
        assert found.kept == asked == len(found.text)
        assert re.findall(r"[\d,]*\d", found.text) == numbers


@pytest.mark.parametrize("cut", ["end", "beginning"])
@pytest.mark.parametrize("granularity", ["token", "segment", "two_stage"])
def test_characters_of_several_tokens_are_kept_whole_or_not_at_all(granularity, cut) -> None:
    text = "今天天气很好。\n\nBob 🎉🎊🥳 ok 🧑\u200d🚀\n\nÉté 1901"
    pruner, exact = PromptPruner(score, Letters(), granularity, cut=cut), []
    for asked in range(1, len(text.encode()) + 1):
        (found,) = pruner([text], ["q"], keep_tokens=asked)
        assert found.kept == len(found.text.encode()) <= asked
        assert bool(found.note) == (found.kept != asked)
        exact.append(found.kept == asked)
        rest = iter(text)
        assert all(character in rest for character in found.text.replace(" ", "")), found.text
    assert np.mean(exact) > 0.8


def test_the_scorer_reads_segments_as_in_training_and_the_text_stays_as_it_was() -> None:
    seen = []

    def spy(batch: Batch, budget) -> Scores:
        seen.append(Letters().decode(batch.tokens[0][batch.role[0] == Role.CONTEXT].tolist()))
        return score(batch, budget)

    pruner = PromptPruner(spy, Letters(), "segment", segment=lambda paragraph: f" {paragraph.strip()}")
    (found,) = pruner(["  Ann.\n\n\nBob is.\n\nCy."], ["q"], keep_tokens=10, force=["Bo"])
    assert seen == [" Ann. Bob is. Cy."]
    assert found.text == "Bob i\n\nCy." and found.kept == 10
    assert pruner(["  Ann.\n\nBob."], ["q"], keep_rate=1.0)[0].text == "  Ann.\n\nBob."


@pytest.mark.parametrize(
    ("task", "text", "forced", "read"),
    [
        (Documents(), "Alice is a baker\nin  Rome.\n\n", "Alice", "Alice"),
        (Documents(), "Alice is a baker\nin  Rome.\n\n", r"baker\s+in", "baker in"),
        (Documents(), "Alice is a baker\nin  Rome.\n\n", r"Rome\.\s*", "Rome."),
        (CommonWords(), "apple,,\n\n", "app", "app"),
        (CommonWords(), "apple,,\n\n", ",", ","),
        (CommonWords(), "apple,,\n\n", "apple.+", "apple,"),
    ],
)
def test_what_is_forced_is_found_where_the_task_writes_a_paragraph_anew(task, text, forced, read) -> None:
    seen = []

    def spy(batch: Batch, budget) -> Scores:
        seen.append(Letters().decode(batch.tokens[0][batch.forced[0]].tolist()))
        return score(batch, budget)

    pruner = PromptPruner(spy, Letters(), "token", segment=task.segment)
    (found,) = pruner([text + "Bob is."], ["q"], keep_tokens=12, force=[forced])
    assert seen == [read] and "".join(read.split()) in "".join(found.text.split())


def test_the_printed_text_never_has_more_tokens_than_asked() -> None:
    """With tokens that merge: two white-space characters at the end of a text are one token, before a letter two."""

    class Merging(Letters):
        def encode(self, text: str) -> list[int]:
            return [257, *text[:-2].encode()] if text.endswith("\n\n") else list(text.encode())

        def decode(self, ids: list[int]) -> str:
            return super().decode(ids[1:]) + "\n\n" if ids[:1] == [257] else super().decode(ids)

    for granularity in ("segment", "token"):
        pruner = PromptPruner(score, Merging(), granularity)  # pyright: ignore[reportArgumentType]
        for asked in range(4, len(TEXT) + 3):
            (found,) = pruner([TEXT], ["q"], keep_tokens=asked)
            assert found.kept == len(Merging().encode(found.text)) <= asked


@pytest.mark.parametrize("granularity", ["segment", "token", "two_stage"])
def test_a_prompt_kept_whole_loses_nothing_where_the_scorer_reads_more_tokens(granularity) -> None:
    """The scorer reads " a", "b", "c", "." of "abc.", which is "ab", "c", ".": "bc." has as many tokens as that."""

    class Pairs(Letters):
        def encode(self, text: str) -> list[int]:
            return [{" a": 1, "ab": 2}.get(part, ord(part[0])) for part in re.findall("(?s) a|ab|.", text)]

        def decode(self, ids: list[int]) -> str:
            return "".join({1: " a", 2: "ab"}.get(i, chr(i)) for i in ids)

    pruner = PromptPruner(score, Pairs(), granularity, segment=lambda text: f" {text.strip()}")  # pyright: ignore
    (found,) = pruner(["abc."], ["q"], keep_rate=1.0)
    assert (found.text, found.kept, found.tokens, found.note) == ("abc.", 3, 3, "")
    (found,) = pruner(["abc."], ["q"], keep_tokens=3, force=["(?s).+"])
    assert found.text == "abc.", "all of it is forced, which is four tokens as the scorer reads it"
    (found, other) = pruner(["abc.", TEXT], ["q", "q"], keep_tokens=20)
    assert found.text == "abc." and other.kept == other.asked == 20, "beside a prompt that is cut"


def test_the_scorer_is_told_the_group_of_the_prompts() -> None:
    seen = []

    def spy(batch: Batch, budget) -> Scores:
        seen.append(batch.group.tolist())
        return score(batch, budget)

    pruner = PromptPruner(spy, Letters(), "token", groups=("sentences", "equations"))
    for group in ("", "sentences", "equations"):
        pruner([TEXT, TEXT], ["q", "q"], keep_rate=0.5, group=group)
    assert seen == [[0, 0], [0, 0], [1, 1]]
    with pytest.raises(UserError, match="--group 'sums': expected one of sentences, equations"):
        pruner([TEXT], ["q"], keep_rate=0.5, group="sums")
    with pytest.raises(UserError, match="--group 'sums': expected none: this pruner tells no groups apart"):
        PRUNER([TEXT], ["q"], keep_rate=0.5, group="sums")


def test_scorer_sees_no_answer() -> None:
    seen = []

    def spy(batch: Batch, budget) -> Scores:
        seen.append(np.asarray(batch.role))
        return score(batch, budget)

    PromptPruner(spy, Letters(), "token")([TEXT], ["q"], keep_rate=0.5)
    assert not (seen[0] == Role.ANSWER).any() and (seen[0] == Role.QUESTION).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 0.0}, r"--keep-rate 0: expected a fraction in \(0, 1\]"),
        ({"keep_rate": 1.5}, r"--keep-rate 1.5: expected a fraction"),
        ({"keep_tokens": 0}, r"--keep-tokens 0: expected at least 1"),
        ({}, "either --keep-rate or --keep-tokens"),
        ({"keep_rate": 0.5, "keep_tokens": 3}, "either --keep-rate or --keep-tokens"),
    ],
)
def test_a_budget_out_of_range_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PRUNER([TEXT], ["q"], **arguments)


def test_an_empty_context_and_an_overlong_prompt_are_refused() -> None:
    with pytest.raises(UserError, match="prompt 2: empty context"):
        PRUNER([TEXT, "\n \n"], ["q", "q"], keep_rate=0.5)
    with pytest.raises(UserError, match="prompt 1: 401 tokens with its question; the pruner reads at most 300"):
        PRUNER(["x" * 400], ["q"], keep_rate=0.5)


def test_result_is_plain_data() -> None:
    (found,) = PRUNER([TEXT], ["q"], keep_rate=0.5)
    assert isinstance(found, PrunedPrompt)
    json.dumps(vars(found))
