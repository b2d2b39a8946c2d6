"""Searches for a mask. `config/registry.py` lists them, `problem.py` says all that they know of the model."""
