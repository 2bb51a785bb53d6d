"""Synthetic users on RecGaze's screens, as logs in the data set's raw form and with the truth of what the logs hold.

`people` says who they are, `catalogue` what they see, `aims` what they are after, `walk` how they look, scroll, swipe
and choose, `cursor` where the cursor goes meanwhile, `logs` how that stands in the raw tables, and `truth` what a
reader should make of it.
"""

from tests.data.synthetic.recgaze.generator import write_recgaze
from tests.data.synthetic.recgaze.truth import Truth

__all__ = ["Truth", "write_recgaze"]
