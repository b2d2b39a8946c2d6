"""Which units of a block stand in for which: least squares of its output projection, and the order in which units
go."""
