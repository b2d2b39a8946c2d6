"""Searches over widths of blocks."""
