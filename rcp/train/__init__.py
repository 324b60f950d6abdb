"""Training: the state, the step mapped over devices, the loop, checkpoints and metrics."""
