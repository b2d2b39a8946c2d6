"""Trackers that mirror the record: Weights & Biases, TensorBoard."""
