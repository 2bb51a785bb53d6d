"""Made-up people on RecGaze's screens, as logs in the data set's raw form and with the truth of what the logs hold.

A stand-in that can be shipped, for tests and the demo; nothing in it is taken from real people. `people` says who they
are, `catalogue` what they see, `aims` what they are after, `walk` how they look, scroll, swipe and choose, `cursor`
where the cursor goes meanwhile, `logs` how that stands in the raw tables, and `truth` what a reader should make of it.
"""

from fixate_jax.data.synthetic.recgaze.generator import prepare, source_files, write_recgaze
from fixate_jax.data.synthetic.recgaze.people import Person
from fixate_jax.data.synthetic.recgaze.truth import Truth

__all__ = ["Person", "Truth", "prepare", "source_files", "write_recgaze"]
