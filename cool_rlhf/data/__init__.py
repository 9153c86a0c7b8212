"""Chat template, rows of data and their checks, packing."""
