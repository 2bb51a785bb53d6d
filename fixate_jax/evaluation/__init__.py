"""How close a model comes to people, on arrays."""
