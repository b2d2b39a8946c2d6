"""Importance scores: how much each unit seems to matter, before any search."""
