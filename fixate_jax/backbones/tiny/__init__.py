"""Tiny backbones: random ones, and those that come with the library."""
