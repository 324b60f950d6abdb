"""Answers and likelihoods of many prompts from an OpenAI-compatible endpoint (/v1/completions, /v1/chat/completions).

Requests run `concurrency` at a time, equal ones once; results come in the order of the prompts and go into a cache as
they arrive. The key is read from the environment for each call and stands in no message, file or cached request.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rcp.config import EndpointConfig
from rcp.endpoint.cache import Cache, fingerprint
from rcp.endpoint.transport import RefusedError, clean, send
from rcp.types import UserError

NO_ECHO = (400, 404, 405, 413, 422, 501)
"""Statuses by which an endpoint says that it does not echo a prompt with log-probabilities."""


class _Request(NamedTuple):
    """`read` makes the result of the answer; `begin` is what it depends on besides `body`, or None."""

    path: str
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    begin: int | None = None

    def key(self, base: str) -> str:
        own = [] if self.begin is None else [self.begin]
        return fingerprint([base, self.path, self.body, *own])


class Client:
    """One endpoint.

    Args:
      config: where it is and how it is spoken to.
      cache: file that answers are kept in, or None: in memory, for the life of the client.

    Attributes:
      sent: requests for answers and likelihoods sent so far, retries not counted.
    """

    def __init__(self, config: EndpointConfig, cache: Path | None = None):
        self.config, self._cache, self.sent = config, Cache(cache), 0
        root = config.base_url.rstrip("/")
        self.base = root if "/" in root.partition("://")[2] else f"{root}/v1"
        self._echoes = False  # whether it has given log-probabilities of a prompt
        self._lock, self._slots = threading.Lock(), threading.BoundedSemaphore(config.concurrency)

    @cached_property
    def model(self) -> str:
        """The name of the model: the one configured, or the only one that the endpoint serves."""
        if self.config.model:
            return self.config.model
        found = self._send("models", None)
        try:
            names = [str(entry["id"]) for entry in found["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            served = f"serves {', '.join(names[:10])}" if names else "names none"
            raise UserError(f"{self.base}/models {served}: say which model is meant (--reader_model or endpoint.model)")
        return names[0]

    def texts(
        self, prompts: Sequence[str], *, samples: int = 1, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> list[list[str]]:
        """`samples` continuations of each prompt; at temperature 0 the likeliest.

        Raises:
          UserError: an answer that cannot be had, or that has fewer samples than asked for.
        """
        shared: dict[str, Any] = {"model": self.model, "max_tokens": self.config.max_new, "temperature": temperature}
        if temperature > 0:
            shared |= {"top_p": top_p, "seed": seed}
        if samples > 1:
            shared["n"] = samples
        chat = self.config.api == "chat"
        path = "chat/completions" if chat else "completions"

        def said(answer: dict[str, Any]) -> list[str]:
            choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
            found = [(choice["message"]["content"] if chat else choice["text"]) or "" for choice in choices]
            if len(found) < samples:
                raise UserError(f"{self.base}/{path}: {len(found)} samples came of {samples} asked for in one request")
            return found[:samples]

        return self._all([_Request(path, shared | _prompt(prompt, chat), said) for prompt in prompts])

    def nll(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float] | None:
        """-log p of each answer after its prompt, nats summed over its tokens; None where the endpoint cannot say.

        The whole text is sent with `echo`, as /v1/completions of base models allows. A token that holds the prompt's
        last letter and the answer's first is counted with the answer.
        """
        if self.config.api == "chat":
            return None
        if not prompts:
            return []
        shared: dict[str, Any] = {
            "model": self.model,
            "max_tokens": 0,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }

        def request(prompt: str, answer: str) -> _Request:
            begin = len(prompt)  # the same text may be another prompt with another answer
            body = shared | {"prompt": prompt + answer}
            return _Request("completions", body, lambda found: _answer_nll(found, begin), begin)

        requests = [request(prompt, answer) for prompt, answer in zip(prompts, answers)]
        try:
            if not self._echoes:
                self._all(requests[:1])  # alone: where it is refused, no other is sent
                self._echoes = True
            return self._all(requests)
        except (_UnavailableError, RefusedError) as error:
            if self._echoes:
                why = str(error) or "none came"
                raise UserError(f"{self.base}: no log-probabilities of a text, as it gave of others: {why}") from error
            return None

    def _all(self, requests: Sequence[_Request]) -> list[Any]:
        """The result of each request."""
        keys = [request.key(self.base) for request in requests]
        missing = {key: request for key, request in zip(keys, requests) if key not in self._cache}
        stop = threading.Event()

        def fetch(item: tuple[str, _Request]) -> None:
            key, (path, body, read, _) = item
            try:
                with self._slots:  # of all calls, which may come from several threads
                    if stop.is_set():
                        return
                    with self._lock:
                        self.sent += 1
                    answer = self._send(path, body, stop)
                try:
                    self._cache[key] = read(answer)
                except (KeyError, TypeError, IndexError, AttributeError):
                    raise UserError(
                        f"{self.base}/{path}: the answer has no completion: {clean(str(answer), self._key())}"
                    ) from None
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(fetch, item) for item in missing.items()]
            try:
                failed = [error for future in futures if (error := future.exception()) is not None]
            except BaseException:  # an interrupt: no more requests
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        if failed:  # the first cause, not those that gave up for it
            raise next((error for error in failed if "given up" not in str(error)), failed[0])
        return [self._cache[key] for key in keys]

    def _send(self, path: str, body: dict[str, Any] | None, stop: threading.Event | None = None) -> dict[str, Any]:
        key, url = self._key(), f"{self.base}/{path}"
        try:
            return send(url, body, key=key, timeout=self.config.timeout, retries=self.config.retries, stop=stop)
        except RefusedError as error:
            if body is not None and body.get("echo") and error.status in NO_ECHO:
                raise
            hint = ""
            if error.status in (401, 403):
                hint = f"; is the right key in the environment variable {self.config.api_key_env}?"
            elif error.status == 404:
                hint = "; are base_url, api and model right?"
            raise UserError(f"{url}: {error}{hint}") from None

    def _key(self) -> str:
        name = self.config.api_key_env
        key = os.environ.get(name, "").strip()
        if not all("!" <= letter <= "~" for letter in key):  # its own error would show the key
            raise UserError(f"the environment variable {name}: expected one key, without spaces or line breaks")
        return key


class _UnavailableError(Exception):
    """The endpoint gives no log-probabilities of prompts."""


def _prompt(text: str, chat: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}


def _answer_nll(found: dict[str, Any], begin: int) -> float:
    """Of the tokens that hold some of the text from character `begin` on."""
    logprobs = found["choices"][0].get("logprobs") or {}
    values, offsets = logprobs.get("token_logprobs"), logprobs.get("text_offset")
    if not values or not offsets or len(values) != len(offsets):
        raise _UnavailableError
    inside = [value for value, end in zip(values, [*offsets[1:], float("inf")]) if end > begin]
    if not inside or any(value is None for value in inside):
        raise _UnavailableError
    return -float(sum(inside))
