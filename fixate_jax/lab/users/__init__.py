"""Tuning each user alone, hundreds at a time."""
