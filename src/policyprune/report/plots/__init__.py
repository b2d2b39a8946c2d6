"""Plots of many runs, from what the tables are made of. A plot without data is left out."""
