"""One module for each domain."""
