"""The client against a server in another process: order, retries, errors, the cache and the key."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.client import HTTPMessage
from pathlib import Path

import pytest

from rcp.config import EndpointConfig
from rcp.endpoint import transport
from rcp.endpoint.client import Client
from rcp.types import UserError
from tests.endpoint.server import count, serving

PROMPTS = [f" v{i} = {i % 10} ; v{i} ?" for i in range(20)]
SAID = [[f" {i % 10}"] for i in range(20)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def client(url: str, cache: Path | None = None, **values) -> Client:
    return Client(EndpointConfig(base_url=url, **{"retries": 2, "concurrency": 4, "timeout": 10.0, **values}), cache)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_answers_come_in_the_order_of_the_prompts(url: str, api: str) -> None:
    assert client(url, api=api).texts(PROMPTS) == SAID
    assert client(f"{url}/v1/", api=api, model="solver").texts(PROMPTS[::-1]) == SAID[::-1]


def test_equal_prompts_are_sent_once_and_nothing_that_the_cache_holds(url: str, tmp_path: Path) -> None:
    cache, before = tmp_path / "requests.jsonl", count(url)
    assert client(url, cache).texts(PROMPTS[:5] * 3) == SAID[:5] * 3
    assert count(url) - before == 5
    assert client(url, cache).texts(PROMPTS[:6]) == SAID[:6]
    assert count(url) - before == 6
    client(url, cache, max_new=7).texts(PROMPTS[:1])
    assert count(url) - before == 7, "another request"
    text = cache.read_text()
    cache.write_text(text[:-20])  # killed while it wrote
    assert client(url, cache).texts(PROMPTS[:6]) == SAID[:6] and count(url) - before == 7
    client(url, cache, max_new=7).texts(PROMPTS[:1])
    assert count(url) - before == 8 and client(url, cache, max_new=7).texts(PROMPTS[:1]) == SAID[:1]
    assert count(url) - before == 8, "the line after the torn one can be read"


def test_samples_and_what_is_asked_for_them(url: str) -> None:
    found = client(url).texts(PROMPTS[3:4], samples=3, temperature=0.7)
    assert found == [[" 3", " none", " 3"]]


def test_likelihoods_where_the_endpoint_gives_them(url: str) -> None:
    answers = [" 5", " 44"]
    assert client(url).nll([" v1 = 5 ; v1 ?", " v2 ?"], answers) == pytest.approx([2 * 0.5, 3 * 3.0])
    for model in ("base", "partial"):
        before = count(url, model)
        assert client(url, model=model).nll(PROMPTS, [" 1"] * 20) is None
        assert count(url, model) - before == 1, "asked once, not for every prompt"
    assert client(url, api="chat").nll(PROMPTS, [" 1"] * 20) is None


def test_likelihoods_of_one_text_are_kept_by_where_its_answer_begins(url: str, tmp_path: Path) -> None:
    splits, answers = [" v1 = 5 ; v1 ?", " v1 = 5 ; v1"], [" 5", " ? 5"]
    for _ in range(2):  # the second time from the cache
        assert client(url, tmp_path / "c.jsonl").nll(splits, answers) == pytest.approx([2 * 0.5, 4 * 0.5])
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2


def test_likelihoods_of_no_prompt_say_nothing_about_the_endpoint(url: str) -> None:
    one = client(url, model="base")
    assert one.nll([], []) == [] and one.sent == 0
    assert one.nll(PROMPTS[:2], [" 1"] * 2) is None, "no error: it has given none before"


def test_a_busy_server_is_asked_again(url: str) -> None:
    assert client(url, model="busy").texts(PROMPTS[:6]) == SAID[:6]
    assert count(url, "busy") == 12


class Waits(threading.Event):
    """Never set; notes how long it would have been waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        return False


@pytest.mark.parametrize(
    ("model", "least"), [("soon", [0.75, 1.5, 3.0]), ("past", [0.75, 1.5, 3.0]), ("later", [2.0, 2.0, 3.0])]
)
def test_a_wait_that_a_server_asks_for_is_never_shorter_than_ours(url: str, monkeypatch, model, least) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 1.0)
    stop, body = Waits(), {"model": model, "prompt": PROMPTS[0]}
    with pytest.raises(UserError, match=r"HTTP 503.* after 4 attempts"):
        transport.send(f"{url}/v1/completions", body, timeout=10.0, retries=3, stop=stop)
    assert len(stop.asked) == 3
    assert all(low <= wait <= max(low, low / 0.75 * 1.25) for low, wait in zip(least, stop.asked)), stop.asked


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "broken"}, r"/v1/completions: HTTP 500: .*out of order.*after 3 attempts"),
        ({"model": "garbled"}, r"not JSON: '.\"choices\": \['\), after 3 attempts"),
        ({"model": "slow", "timeout": 0.2, "retries": 0}, r"no answer \(TimeoutError: .*after 1 attempts"),
        ({"model": "trickle", "timeout": 0.3, "retries": 0}, r"no answer \(TimeoutError: not complete after 0.3 s"),
        ({"model": "torn", "retries": 1}, r"no answer \(IncompleteRead: .*after 2 attempts"),
        ({"model": "empty"}, r"0 samples came of 1"),
        ({"model": "moved"}, r"HTTP 307"),
        ({"base_url": "/elsewhere"}, r"elsewhere/completions: HTTP 404: .*are base_url, api and model right\?"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_says_where_and_why(url: str, values: dict, message: str) -> None:
    where = url + values.pop("base_url", "/v1")
    with pytest.raises(UserError, match=message):
        client(where, **{"model": "solver", **values}).texts(PROMPTS[:3])


def test_no_server_is_an_error_soon() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"127.0.0.1:9/v1/models: no answer .*ConnectionRefused.*is base_url right\?"):
        client("http://127.0.0.1:9").texts(PROMPTS)
    assert time.monotonic() - start < 5


def test_one_failure_ends_the_others_and_keeps_what_came(url: str, tmp_path: Path) -> None:
    one = client(url, tmp_path / "c.jsonl", model="broken", concurrency=2)
    before = count(url, "broken")
    with pytest.raises(UserError, match="HTTP 500"):
        one.texts(PROMPTS)
    assert count(url, "broken") - before <= 6, "two under way, three attempts each"


def test_the_key_is_sent_and_never_shown_or_stored(url: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THE_KEY", "open-sesame-123")
    with pytest.raises(UserError, match="environment variable THE_KEY") as error:
        client(url, model="locked", api_key_env="THE_KEY").texts(PROMPTS[:1])
    assert "open-sesame" not in str(error.value) and "Bearer ***" in str(error.value)
    monkeypatch.setenv("THE_KEY", "letmein")
    one = client(url, tmp_path / "c.jsonl", model="locked", api_key_env="THE_KEY")
    assert one.texts(PROMPTS[:2]) == SAID[:2]
    assert "letmein" not in (tmp_path / "c.jsonl").read_text() + repr(one.config)


@pytest.mark.parametrize("key", ["one\ntwo", "one two", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_not_shown(url: str, monkeypatch, key: str) -> None:
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(UserError, match="THE_KEY: expected one key, without spaces or line breaks") as error:
        client(url, api_key_env="THE_KEY").texts(PROMPTS[:1])
    assert key not in str(error.value)


def test_a_wrong_key_is_no_lack_of_likelihoods(url: str, monkeypatch) -> None:
    monkeypatch.setenv("THE_KEY", "wrong")
    with pytest.raises(UserError, match=r"HTTP 401.*is the right key in the environment variable THE_KEY"):
        client(url, model="locked", api_key_env="THE_KEY").nll(PROMPTS[:1], [" 1"])


def test_retry_after_is_a_number_or_a_date() -> None:
    def headers(value: str) -> HTTPMessage:
        message = HTTPMessage()
        message["Retry-After"] = value
        return message

    assert transport._retry_after(headers("7")) == 7.0 and transport._retry_after(None) is None
    found = transport._retry_after(headers(formatdate(time.time() + 30, usegmt=True)))
    assert found is not None and 25 < found <= 31
    assert transport._retry_after(headers("soon")) is None


def test_requests_are_plain_json(url: str, tmp_path: Path) -> None:
    client(url, tmp_path / "c.jsonl").texts(PROMPTS[:1])
    (line,) = (tmp_path / "c.jsonl").read_text().splitlines()
    assert json.loads(line)["result"] == [" 0"]
