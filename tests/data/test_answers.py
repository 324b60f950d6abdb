"""Final answers: what is read off a text, and when two of them are equal."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rcp.data.answers import answer_key, check, final_answer
from rcp.data.tasks.base import answer_key as key_of
from rcp.data.tasks.chain import Chain
from rcp.data.tasks.facts import Facts
from rcp.data.tasks.jsonl import Jsonl
from rcp.data.tasks.word_problems import Gsm8k

EQUAL = [
    ("1,000", "1000.0"),
    ("$72", "72"),
    ("50%", "50"),
    ("72 dollars", "72"),
    ("1{,}000", "1000"),
    ("3/4", "0.75"),
    (r"\frac{3}{4}", "0.75"),
    (r"$\dfrac{3}{4}$ of it", "3/4"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "1.5"),
    ("10/2 = 5", "5"),
    (r"\boxed{42}", "42"),
    (r"\(12\ \text{cm}\)", "12"),
    (r"$\sqrt{4}$", "2"),
    ("-$3", "-3"),
]
DIFFERENT = [("3/4", "3"), ("71", "72"), ("1 1/2", "1"), (r"\frac{3}{4}", "4"), ("1/3", "0.3"), ("-3", "3")]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_answers(a: str, b: str) -> None:
    assert check(f"So. The answer is {a}.", f"The answer is {b}.") and check(
        f"The answer is {b}.", f"The answer is {a}."
    )
    assert answer_key(f"The answer is {a}.") == answer_key(f"The answer is {b}.")


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(a: str, b: str) -> None:
    assert not check(f"The answer is {a}.", f"The answer is {b}.")
    assert answer_key(f"The answer is {a}.") != answer_key(f"The answer is {b}.")


def test_the_quantity_is_the_first_after_the_mark_else_the_last() -> None:
    assert final_answer("1/2 of 3. The answer is 3/2, not 7.") == "3/2"
    assert final_answer("first 3, then 1 1/2") == "1 1/2"
    assert final_answer(r"so $x = \frac{1}{2}$") == r"$x = \frac{1}{2}$" and check(r"so $x = \frac{1}{2}$", "0.5")
    assert final_answer("no number") is None and answer_key("no number") is None


def test_math_verify_is_imported_only_where_a_number_is_not_plain() -> None:
    code = (
        "import sys; from rcp.data.answers import check; assert check('so $72.0', 'The answer is 72.')\n"
        "assert 'math_verify' not in sys.modules; assert check('1/2', '0.5'); assert 'math_verify' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_agree_and_no_signal_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    def handler(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: check(rf"The answer is \frac{{{n}}}{{8}}.", f"{n / 8}"), range(64)))
        assert all(found) and signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "Timeout is disabled" not in capfd.readouterr().err


@pytest.mark.parametrize("text", ["$9^{9^{9}} \\cdot 1$", "\\(99999999!\\)", "$\\frac{1}{2}" + "0" * 100 + "$"])
def test_what_could_take_for_ever_is_not_evaluated(text: str) -> None:
    assert not check(f"The answer is {text}", "The answer is 1.")


def test_what_samples_vote_with_is_the_tasks_own_else_the_text() -> None:
    assert key_of(Gsm8k())(" 3 * 2 = 6. The answer is 6.0.\n\nQ: 5") == "6"
    assert key_of(Facts())(" Oslo. Tom is") == "Oslo"
    assert key_of(Jsonl(path="any.jsonl"))(" Oslo. \nNext") == "Oslo"
    assert key_of(Chain())(" v1 3 ") == "v1 3", "a task without one"
