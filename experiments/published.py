"""Published numbers that tables print beside ours, each with its source and the model it was measured on.

They are exact match in per cent (of "ruler" the share of expected words that were named, as RULER counts), on other
models than the table's unless the same is named: for the reader to judge by, not for a comparison. A number whose place
in its source is not known is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

INFLUX = "Huang et al., arXiv 2312.08901, the authors' logged scores"
LLMLINGUA = "Jiang et al., LLMLingua, arXiv 2310.05736"
LLMLINGUA2 = "Pan et al., LLMLingua-2, arXiv 2403.12968"
KVPRESS = "NVIDIA's kvpress, its leaderboard of RULER at 4,096 tokens"
LLAMA = "Llama-3.1-8B"


@dataclass(frozen=True)
class Published:
    """`method`, `dataset`: as tables call them. `value`: exact match, %. `on`: the model. `at`: under which budget."""

    method: str
    dataset: str
    value: float
    on: str
    source: str
    at: str = ""

    def __str__(self) -> str:
        return f"{self.value:g} ({self.on}{', ' + self.at if self.at else ''})"


PUBLISHED = (
    Published("cot_influx_drawn", "gsm8k", 15.85, "LLaMA2-7B", INFLUX),
    Published("cot_influx_drawn", "gsm8k", 32.22, "LLaMA2-13B", INFLUX),
    Published("cot_influx_drawn", "gsm8k", 59.59, "LLaMA2-70B", INFLUX),
    Published("llmlingua", "gsm8k", 79.08, "GPT-3.5", LLMLINGUA, "5x"),
    Published("llmlingua", "gsm8k", 77.41, "GPT-3.5", LLMLINGUA, "14x"),
    Published("llmlingua", "gsm8k", 77.33, "GPT-3.5", LLMLINGUA, "20x"),
    Published("full", "gsm8k", 78.85, "GPT-3.5", LLMLINGUA, "8 shots"),
    Published("shorter", "gsm8k", 77.10, "GPT-3.5", LLMLINGUA, "1 shot"),
    Published("llmlingua2", "gsm8k", 79.08, "the authors' reader", LLMLINGUA2, "5x"),
    Published("llmlingua2", "gsm8k", 77.79, "the authors' reader", LLMLINGUA2, "14x"),
    Published("full", "ruler", 95, LLAMA, KVPRESS, "about"),
    Published("kvzip", "ruler", 95.5, LLAMA, KVPRESS, "75 % kept"),
    Published("kvzip", "ruler", 95.5, LLAMA, KVPRESS, "50 %"),
    Published("kvzip", "ruler", 95.3, LLAMA, KVPRESS, "30 %"),
    Published("expected_attention+ada", "ruler", 95, LLAMA, KVPRESS, "75 % kept, about"),
    Published("expected_attention+ada", "ruler", 91.5, LLAMA, KVPRESS, "50 %"),
    Published("expected_attention+ada", "ruler", 74, LLAMA, KVPRESS, "25 %"),
    Published("h2o", "ruler", 73, LLAMA, KVPRESS, "75 % kept, as observed attention"),
    Published("h2o", "ruler", 51, LLAMA, KVPRESS, "50 %"),
    Published("h2o", "ruler", 29, LLAMA, KVPRESS, "25 %"),
    Published("random", "ruler", 63, LLAMA, KVPRESS, "75 % kept"),
    Published("random", "ruler", 7.6, LLAMA, KVPRESS, "50 %"),
    Published("random", "ruler", 0.5, LLAMA, KVPRESS, "25 %"),
)


def published(method: str, dataset: str) -> list[Published]:
    """What was published of a method on a data set."""
    return [entry for entry in PUBLISHED if (entry.method, entry.dataset) == (method, dataset)]
