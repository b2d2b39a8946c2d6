"""The dense model, and an adapter that names its units."""
