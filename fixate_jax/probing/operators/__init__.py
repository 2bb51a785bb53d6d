"""Operators, one file each."""
