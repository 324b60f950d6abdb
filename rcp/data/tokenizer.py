"""Tokenizers for models trained from scratch: of a closed vocabulary, and of characters."""

from __future__ import annotations

import string
from collections.abc import Sequence

from rcp.types import UserError

PAD, EOS = "<pad>", "<eos>"


class SymbolTokenizer:
    """Symbols are separated by white space; each is one token.

    Text is written with one space before every symbol (" v1 = 3 ;"), and `decode(encode(text)) == text` for such text.
    Ids: 0 padding, 1 end, then the symbols in the order given.
    """

    def __init__(self, vocabulary: Sequence[str]):
        symbols = (PAD, EOS, *vocabulary)
        if len(set(symbols)) != len(symbols):
            raise ValueError("a symbol occurs twice in the vocabulary")
        if any(symbol.split() != [symbol] for symbol in symbols):
            raise ValueError("a symbol is empty or has white space in it")
        self.symbols = symbols
        self.vocab_size = len(symbols)
        self.pad_id = 0
        self.eos_id = 1
        self._ids = {symbol: number for number, symbol in enumerate(symbols)}

    def encode(self, text: str) -> list[int]:
        """Raises UserError on a symbol outside the vocabulary."""
        try:
            return [self._ids[symbol] for symbol in text.split()]
        except KeyError as error:
            known = " ".join(self.symbols[2:12])
            raise UserError(f"unknown symbol {error.args[0]!r}: the vocabulary is {known} ...") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(" " + self.symbols[int(i)] for i in ids)


class CharacterTokenizer:
    """Each character is a token: those of ASCII that print, space and line feed. Any other one is the replacement sign.

    Ids: 0 padding, 1 end, 2 the replacement sign, then the others.
    """

    def __init__(self) -> None:
        self.symbols = (PAD, EOS, "\ufffd", *string.printable[:-5], "\n")
        self.vocab_size = len(self.symbols)
        self.pad_id = 0
        self.eos_id = 1
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, 2) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.symbols[int(i)] for i in ids)
