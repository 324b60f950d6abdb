"""Published weights and tokenizers, read into our parameter tree."""

from rcp.pretrained.load import Pretrained, load, read_shape
from rcp.pretrained.tokenizer import PretrainedTokenizer

__all__ = ["Pretrained", "PretrainedTokenizer", "load", "read_shape"]
