"""Tokenizers of published models, over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from rcp.types import UserError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF


class PretrainedTokenizer:
    """A published tokenizer behind `rcp.types.Tokenizer`.

    Attributes:
      vocab_size: ids are below it. bos_id may be None. pad_id falls back to eos_id.
      chat_template: a jinja2 template, or None.
    """

    def __init__(
        self, fast: FastTokenizer, *, bos_id: int | None, eos_id: int, pad_id: int | None, chat_template: str | None
    ):
        self.fast = fast
        self.vocab_size = fast.get_vocab_size(with_added_tokens=True)
        self.bos_id, self.eos_id = bos_id, eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.chat_template = chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids; nothing is added, and special tokens spelled in the text become their ids."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self.fast.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Messages ({"role", "content"}) as the text the model was tuned on; `encode` it to get ids.

        Raises:
          UserError: the model has no template, or the template refuses these messages.
        """
        if self.chat_template is None:
            raise UserError("this model has no chat template: it is a base model, or its files lack one")
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception

        def token(index: int | None) -> str:
            return "" if index is None else self.fast.id_to_token(index) or ""

        try:
            return environment.from_string(self.chat_template).render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=token(self.bos_id),
                eos_token=token(self.eos_id),
                **variables,
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error


def from_json(
    path: Path, bos: str | None, eos: str | None, pad: str | None, chat_template: str | None
) -> PretrainedTokenizer:
    """Reads a tokenizer.json; the special tokens are given by their text."""
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not a readable tokenizer ({error})") from error
    fast.no_padding()
    fast.no_truncation()

    def index(text: str | None) -> int | None:
        return None if text is None else fast.token_to_id(text)

    eos_id = index(eos)
    if eos_id is None:
        raise UserError(f"{path.parent / 'tokenizer_config.json'}: eos_token is missing or not in the vocabulary")
    return PretrainedTokenizer(fast, bos_id=index(bos), eos_id=eos_id, pad_id=index(pad), chat_template=chat_template)


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The split into words, by llama.cpp's name for it."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's pattern
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in ("default", "gpt-2"):
        return plain
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    patterns = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2}
    if name not in patterns:
        known = ", ".join(["default", "gpt-2", "smollm", *patterns])
        raise UserError(f"tokenizer.ggml.pre {name!r} is not supported; supported: {known}")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(patterns[name]), "isolated"), bytes_only])


def from_merges(
    tokens: Sequence[str],
    merges: Sequence[str],
    token_types: Sequence[int],
    pre: str,
    *,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int | None,
    chat_template: str | None,
) -> PretrainedTokenizer:
    """Byte-level BPE from a vocabulary and its merges ("left right" each), as GGUF files describe it."""
    if eos_id is None:
        raise UserError("metadata key 'tokenizer.ggml.eos_token_id' is missing")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    ignore_merges = pre in ("llama-bpe", "llama3", "llama-v3")  # a word that is a token is never split
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges))
    if pre == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = _pre_tokenizer(pre)
    fast.decoder = decoders.ByteLevel()

    def added(kind: int, special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, special=special, normalized=False)
            for token, its_kind in zip(tokens, token_types, strict=True)
            if its_kind == kind
        ]

    fast.add_special_tokens(added(_CONTROL, True))
    fast.add_tokens(added(_USER_DEFINED, False))
    return PretrainedTokenizer(fast, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, chat_template=chat_template)
