"""What the pruner is compared with: one signature, `scores(batch, key=key, budget=budget) -> Scores`."""

from rcp.policies.base import Policy
from rcp.policies.chance import Random
from rcp.policies.contrast import Contrast
from rcp.policies.diversity import Mmr
from rcp.policies.embedding import Embedding
from rcp.policies.learned import Learned
from rcp.policies.llmlingua import LLMLingua
from rcp.policies.oracle import Alone, Greedy, Oracle
from rcp.policies.perplexity import Perplexity
from rcp.policies.position import First, Full, Last, NoContext, Shorter
from rcp.policies.retrieval import Bm25
from rcp.policies.selective import Selective

POLICIES: dict[str, type[Policy]] = {
    "full": Full,
    "none": NoContext,
    "shorter": Shorter,
    "random": Random,
    "first": First,
    "last": Last,
    "perplexity": Perplexity,
    "bm25": Bm25,
    "oracle": Oracle,
    "ours": Learned,
    "embedding": Embedding,
    "mmr": Mmr,
    "contrast": Contrast,
    "llmlingua": LLMLingua,
    "selective": Selective,
    "alone": Alone,
    "greedy": Greedy,
}
"""Every comparison by the name that tables and configurations use."""

__all__ = [
    "POLICIES",
    "Alone",
    "Bm25",
    "Contrast",
    "Embedding",
    "First",
    "Full",
    "Greedy",
    "LLMLingua",
    "Last",
    "Learned",
    "Mmr",
    "NoContext",
    "Oracle",
    "Perplexity",
    "Policy",
    "Random",
    "Selective",
    "Shorter",
]
