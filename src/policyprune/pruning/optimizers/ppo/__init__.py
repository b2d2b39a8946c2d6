"""Mask search by proximal policy optimisation."""
