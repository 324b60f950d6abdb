"""What a model costs before it is run: bytes, floating-point operations, and from which length on pruning pays."""
