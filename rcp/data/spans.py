"""Which characters of a text each of its tokens holds, for tokenizers that only encode and decode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rcp.types import Tokenizer

REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to


def token_spans(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> np.ndarray | None:
    """int [len(ids), 2], (start, end): token j holds some part of each character of text[start:end].

    `text` is what all `ids` decode to. A character split over several tokens decodes to a replacement sign until it is
    whole: each of them holds it. Tokens are decoded in windows that begin where a token and a character do, so that a
    long text takes linear time.

    Returns None where the parts of `ids` do not decode to the parts of `text`.
    """
    spans = np.zeros((len(ids), 2), int)
    start = at = 0  # the window, and the first token behind what is known to be whole
    known = end = shift = 0  # characters of those whole tokens, and of all tokens so far; of the window before `known`
    for j in range(len(ids)):
        window = tokenizer.decode(list(ids[start : j + 1]))[shift:]
        # The last sign may be a part of a character, or a character of the text: the next tokens will tell.
        sure = window[:-1] if window.endswith(REPLACEMENT) else window
        whole = known + _common_prefix(sure, text[known : known + len(sure)])
        spans[j] = end, max(end, whole + (known + len(window) > whole))
        end = max(end, whole)
        if whole == known + len(window):
            start, at, known = at, j + 1, whole
            shift = len(tokenizer.decode(list(ids[start:at])))
    fits = np.all(spans <= len(text)) and (not len(ids) or spans[-1, 1] == len(text))
    return spans if fits else None


def _common_prefix(a: str, b: str) -> int:
    if a == b:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
