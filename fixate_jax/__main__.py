"""The command line, as `python -m fixate_jax`."""

from fixate_jax.lab.cli.main import main

main()
