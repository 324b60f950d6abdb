"""Which key-value pairs of a cache to keep: policies, budgets, compaction."""

from rcp.eviction.allotment import ADA, GLOBAL, PYRAMID, UNIFORM, Allotment
from rcp.eviction.attended import H2O, TOVA, PyramidKV, SnapKV
from rcp.eviction.base import EvictionPolicy, Needs, Seen, Statistics, all_needs
from rcp.eviction.keys import ExpectedAttention, KeyDiff
from rcp.eviction.position import Full, Random, SinksWindow
from rcp.eviction.reconstruction import KVzip, Repeat

POLICIES: dict[str, type[EvictionPolicy]] = {
    policy.name: policy
    for policy in (Full, Random, SinksWindow, H2O, TOVA, SnapKV, PyramidKV, ExpectedAttention, KeyDiff, KVzip)
}
"""By name. Ada-KV is no policy but an allotment (`ADA`), which goes with the scores of any."""

STREAMING = tuple(n for n, policy in POLICIES.items() if policy().streams and policy.allotment.layers == "uniform")
"""Names of those that can read a stream, whose heads all have one size. A pyramid of layers would be flat there."""

__all__ = [
    "ADA",
    "GLOBAL",
    "H2O",
    "POLICIES",
    "PYRAMID",
    "STREAMING",
    "TOVA",
    "UNIFORM",
    "Allotment",
    "EvictionPolicy",
    "ExpectedAttention",
    "Full",
    "KVzip",
    "KeyDiff",
    "Needs",
    "PyramidKV",
    "Random",
    "Repeat",
    "Seen",
    "SinksWindow",
    "SnapKV",
    "Statistics",
    "all_needs",
]
