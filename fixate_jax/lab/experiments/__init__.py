"""Run directories: tuning, evaluation, tables."""
