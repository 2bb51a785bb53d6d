"""FixATE in JAX."""
