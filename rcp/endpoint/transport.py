"""JSON over HTTP with retries: what stands between a long evaluation and a server that is busy for a moment.

The standard library is enough for some requests at a time whose answers take seconds. Redirects are refused: a request
carries a key, and a redirected POST would arrive as something else.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException, IncompleteRead
from typing import Any

from rcp.types import UserError

LONGEST_WAIT = 120.0
"""Seconds: a wait that a server asks for (Retry-After) is honoured up to this."""
FIRST_WAIT = 0.5
CHUNK = 1 << 16
AGAIN = (408, 425, 429)
NEVER = (501, 505)
"""Statuses from 500 on that say that the server cannot do it, now or later."""
SHOWN = 300


class RefusedError(Exception):
    """A status that no repetition mends."""

    def __init__(self, status: int, body: str):
        super().__init__(f"HTTP {status}: {body or '(empty body)'}")
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def send(
    url: str,
    body: dict[str, Any] | None,
    *,
    key: str = "",
    timeout: float,
    retries: int,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """The JSON object that a POST of `body` (or a GET where it is None) is answered with.

    Sent again, up to `retries` times, after 408, 425, 429 and 5xx but for 501 and 505, where there is no connection or
    no answer in time, and where the answer is not JSON. Waits grow from `FIRST_WAIT` by factors of two; a Retry-After
    that is longer is honoured.
    `timeout`: seconds that an answer may take, to its last byte.

    Raises:
      RefusedError: another status. The message holds the beginning of the body, and never the key.
      UserError: the retries are used up; or `stop` was set meanwhile.
    """
    stop = stop or threading.Event()
    trouble = ""
    for attempt in range(retries + 1):
        try:
            return _once(url, body, key, timeout)
        except urllib.error.HTTPError as error:
            text = _beginning(error, key, timeout)
            if error.code in NEVER or (error.code not in AGAIN and error.code < 500):
                raise RefusedError(error.code, text) from None
            trouble, asked = f"HTTP {error.code}: {text or '(empty body)'}", _retry_after(error.headers)
        except (OSError, HTTPException) as error:  # URLError, timeouts and lost connections are OSErrors
            reason = getattr(error, "reason", error)
            trouble, asked = f"no answer ({type(reason).__name__}: {reason})", None
        except ValueError as error:
            trouble, asked = f"the answer is not what was expected ({error})", None
        if attempt < retries:
            pause = FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25)
            if stop.wait(min(max(pause, asked or 0.0), LONGEST_WAIT)):
                raise UserError(f"{url}: given up, since another request failed")
    raise UserError(
        f"{url}: {trouble}, after {retries + 1} attempts. Is the server running, and is base_url right? Nothing is "
        "lost: answers that came are kept"
    )


def _once(url: str, body: dict[str, Any] | None, key: str, timeout: float) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rcp"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    start = time.monotonic()
    with _OPENER.open(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
        text = _body(answer, start, timeout)
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError(f"not JSON: {clean(text, key)!r}") from None
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object: {clean(text, key)!r}")
    return found


def _body(answer: Any, start: float, timeout: float) -> str:
    """The text of an answer that is given up `timeout` seconds after `start`, though each part of it comes in time."""
    parts: list[bytes] = []
    while part := answer.read1(CHUNK):
        parts.append(part)
        if time.monotonic() - start > timeout:
            raise TimeoutError(f"not complete after {timeout:g} seconds")
    if answer.length:
        raise IncompleteRead(b"".join(parts), answer.length)
    return b"".join(parts).decode("utf-8", errors="replace")


def _beginning(error: urllib.error.HTTPError, key: str, timeout: float) -> str:
    try:
        return clean(_body(error, time.monotonic(), timeout), key)
    except (OSError, HTTPException):
        return ""


def clean(text: str, key: str) -> str:
    text = text.replace(key, "***") if key else text
    return " ".join(text[:SHOWN].split())


def _retry_after(headers: Message | None) -> float | None:
    """Seconds that the server asks to wait, given as a number of them or as a date."""
    text = (headers or {}).get("Retry-After", "")
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
