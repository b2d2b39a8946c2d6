"""Tables and plots of many runs, from their records alone. Imports no torch."""
