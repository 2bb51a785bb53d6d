"""Tuned users to hand on."""
