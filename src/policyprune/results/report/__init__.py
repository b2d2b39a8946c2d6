"""A report on many runs: tables against the published values, from their records alone."""
