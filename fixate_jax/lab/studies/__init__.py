"""Experiments of many runs: ablations, sweeps, what a few sessions of a new person are good for."""
