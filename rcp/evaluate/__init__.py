"""Comparison of pruning methods at equal token budgets."""
