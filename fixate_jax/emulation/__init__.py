"""Emulated users: what they would look at and click on pages that nobody has seen."""

from fixate_jax.emulation.emulator import BACKBONE, UserEmulator
from fixate_jax.emulation.pages import Page, pages_of_sessions
from fixate_jax.emulation.visits import Emulation, Visits

__all__ = ["BACKBONE", "Emulation", "Page", "UserEmulator", "Visits", "pages_of_sessions"]
