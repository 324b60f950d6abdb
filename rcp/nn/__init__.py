"""Neural networks of the codebase; the only rooms that know flax."""
