"""Shared memory made visible: listing, cleaning, and what limits it."""
