"""Synthetic users, to be had without any raw data."""

from fixate_jax.data.readers.synthetic import carousel, choice

__all__ = ["carousel", "choice"]
