"""Running a trained pruner and its model on text."""
