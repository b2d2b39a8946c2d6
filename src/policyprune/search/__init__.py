"""A search as it runs: forward passes, curve, state, the processes that share it."""
