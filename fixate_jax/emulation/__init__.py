"""Emulated users: what they would look at and click on pages that nobody has seen."""

from fixate_jax.emulation.emulator import BACKBONE, UserEmulator
from fixate_jax.emulation.pages import Page, pages_of_sessions
from fixate_jax.emulation.visits import Emulation, Visits
from fixate_jax.lab.bundles.bundle import BackboneWarning, load_bundle, write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.few_shot import learn_users
from fixate_jax.lab.bundles.opening import load_run, open_emulator
from fixate_jax.lab.comparison import Comparison, compare_versions

__all__ = [
    "BACKBONE",
    "BackboneWarning",
    "Comparison",
    "Emulation",
    "Origin",
    "Page",
    "UserEmulator",
    "Visits",
    "compare_versions",
    "learn_users",
    "load_bundle",
    "load_run",
    "open_emulator",
    "pages_of_sessions",
    "write_bundle",
]
