"""The tasks by name. A task's fields are the keys of `config.task`."""

from __future__ import annotations

from rcp.data.tasks.base import SPLITS, Split, Task
from rcp.data.tasks.chain import Chain
from rcp.data.tasks.common_words import CommonWords
from rcp.data.tasks.documents import Documents
from rcp.data.tasks.facts import Facts
from rcp.data.tasks.jsonl import Jsonl
from rcp.data.tasks.long_text import LongText
from rcp.data.tasks.needle import Needle, Passkey
from rcp.data.tasks.reasoning_gym import ReasoningGym
from rcp.data.tasks.solutions import Solutions
from rcp.data.tasks.tracking import Tracking
from rcp.data.tasks.word_problems import AddSub, Gsm8k, Mrd3, MultiArith, SingleEq, Svamp

TASKS: dict[str, type[Task]] = {
    "facts": Facts,
    "chain": Chain,
    "gsm8k": Gsm8k,
    "svamp": Svamp,
    "addsub": AddSub,
    "multiarith": MultiArith,
    "singleeq": SingleEq,
    "mrd3": Mrd3,
    "reasoning_gym": ReasoningGym,
    "jsonl": Jsonl,
    "needle": Needle,
    "passkey": Passkey,
    "tracking": Tracking,
    "common_words": CommonWords,
    "documents": Documents,
    "long_text": LongText,
    "solutions": Solutions,
}

__all__ = ["SPLITS", "TASKS", "Split", "Task"]
