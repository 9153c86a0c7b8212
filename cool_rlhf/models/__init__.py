"""Models: InternLM2 natively, any other transformers family by its own classes; loading, packed forward, export."""
