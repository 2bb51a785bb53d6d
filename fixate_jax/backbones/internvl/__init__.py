"""InternVL3.5."""
