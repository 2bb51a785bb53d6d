"""Emulated users next to the people whom they emulate."""
