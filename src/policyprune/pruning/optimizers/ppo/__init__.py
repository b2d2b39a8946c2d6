"""Mask search by proximal policy optimisation (G-Pruner's PPOM)."""
