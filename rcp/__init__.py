"""RCP: reinforced context pruning. Train a pruner that decides which of its context a language model reads."""

__version__ = "0.1.0"
