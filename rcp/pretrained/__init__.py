"""Published weights and tokenizers, read into our parameter tree."""

from rcp.pretrained.load import Pretrained, load
from rcp.pretrained.tokenizer import PretrainedTokenizer

__all__ = ["Pretrained", "PretrainedTokenizer", "load"]
