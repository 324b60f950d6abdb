"""An OpenAI-compatible server in a process of its own, whose answers are known.

    python tests/endpoint/server.py     # prints its port; ends with its stdin, or after `LIFE` seconds

It knows the language of the task *chain*: where the prompt holds all statements that its question needs, it answers
with the value, else with " none". The name of the model says how it behaves:

    solver    as above; log-probabilities of echoed text are -0.5 a letter, or -3 where a statement is missing
    base      as the solver, but refuses to echo; partial refuses with 501
    busy      429 with Retry-After the first time that it sees a request, then as the solver
    soon, later, past    503 with Retry-After: 0, 2 or a date that is over
    broken    500        garbled   no JSON        slow   after two seconds        empty   no choices
    trickle   a letter each tenth of a second        torn   less than the length that it tells
    locked    401 without the key "letmein"; the answer repeats the key that came
    moved     a redirect
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

LIFE = 3600.0
WAITS = {"soon": "0", "later": "2", "past": "Mon, 01 Jan 2024 00:00:00 GMT"}
COUNTS: Counter[str] = Counter()
SEEN: set[str] = set()
LOCK = threading.Lock()


def solve(prompt: str) -> str:
    """ " 3" from " v7 = v2 ; v2 = 3 ; v7 ?", or " none"."""
    *statements, question = prompt.split(";")
    values = dict(statement.split(" = ") for statement in statements if statement.count(" = ") == 1)
    values = {name.strip(): value.strip() for name, value in values.items()}
    found = question.replace("?", "").strip()
    for _ in range(len(values) + 1):
        if found.isdigit():
            return f" {found}"
        found = values.get(found, "none")
    return " none"


def completion(body: dict, chat: bool) -> dict:
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    if body.get("echo"):
        question = prompt[: prompt.rindex("?") + 1]
        worth = -3.0 if solve(question) == " none" else -0.5
        values = [None, *[worth] * (len(prompt) - 1)]
        return {
            "choices": [{"text": prompt, "logprobs": {"token_logprobs": values, "text_offset": [*range(len(prompt))]}}]
        }
    texts = [" none" if i % 3 == 1 else solve(prompt) for i in range(body.get("n", 1))]
    key = "message" if chat else "text"
    return {"choices": [{"index": i, key: {"content": text} if chat else text} for i, text in enumerate(texts)]}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...

    def answer(self, status: int, body: object, *, missing: int = 0, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) + missing))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/counts":
            self.answer(200, dict(COUNTS))
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "solver"}]})
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, chat, key = body.get("model"), self.path.endswith("/chat/completions"), json.dumps(body, sort_keys=True)
        with LOCK:
            COUNTS[str(model)] += 1
            first = key not in SEEN
            SEEN.add(key)
        if not self.path.endswith("/v1/completions") and not self.path.endswith("/v1/chat/completions"):
            return self.answer(404, {"error": "no such path"})
        if model == "busy" and first:
            return self.answer(429, {"error": "later"}, Retry_After="0")
        if model in WAITS:
            return self.answer(503, {"error": "later"}, Retry_After=WAITS[model])
        if model == "base" and body.get("echo"):
            return self.answer(400, {"error": "echo is not supported"})
        if model == "partial" and body.get("echo"):
            return self.answer(501, {"error": "echo is not implemented"})
        if model == "broken":
            return self.answer(500, {"error": "out of order"})
        if model == "garbled":
            return self.answer(200, '{"choices": [')
        if model == "torn":
            return self.answer(200, completion(body, chat), missing=9)
        if model == "trickle":
            self.answer(200, "", missing=60)
            for _ in range(60):
                self.wfile.write(b" ")
                time.sleep(0.1)
            return None
        if model == "empty":
            return self.answer(200, {"choices": []})
        if model == "moved":
            return self.answer(307, "", Location="http://127.0.0.1:9/v1/completions")
        if model == "locked" and self.headers.get("Authorization") != "Bearer letmein":
            return self.answer(401, {"error": f"wrong key: {self.headers.get('Authorization')}"})
        if model == "slow":
            time.sleep(2)
        return self.answer(200, completion(body, chat))


@contextmanager
def serving() -> Iterator[str]:
    """Runs this file; gives its address without "/v1"."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)


def count(url: str, model: str = "solver") -> int:
    """POST requests for a model so far."""
    with urlopen(f"{url}/counts", timeout=10) as answer:
        return json.load(answer).get(model, 0)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Timer(LIFE, lambda: os._exit(0)).start()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
