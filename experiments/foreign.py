"""How the other side of the `beside_*` scripts answers. Imports nothing: it runs under another Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(load: Callable[[str], tuple[Any, dict[str, str]]], run: Callable[..., dict[str, Any]]) -> None:
    """Answers one JSON object a line of stdin with one of stdout, until stdin ends.

    {"model": folder} is answered with the versions that `load(folder)` gives beside what it loads; every other object
    with `run(loaded, **object)`. What goes wrong is the answer {"error": ...}.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not stand between the answers
    loaded = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "model" in request:
                loaded, answer = load(request["model"])
            else:
                answer = run(loaded, **request)
        except Exception as error:  # the other side says it to the user and ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
