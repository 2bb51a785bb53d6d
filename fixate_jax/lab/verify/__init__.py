"""A backbone against transformers."""
