"""Weights from directories and from the Hub."""
