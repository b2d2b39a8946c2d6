"""Measures of the dense, the one-shot and the pruned model."""
