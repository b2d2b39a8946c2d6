"""Time: of forward passes, of blocks by their width, and what a latency budget kept."""
