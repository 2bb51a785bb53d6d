"""Synthetic users on synthetic result pages, in AdSERP's raw form and with the truth of what the files hold."""

from tests.data.synthetic.adserp.generator import Truth, write_adserp

__all__ = ["Truth", "write_adserp"]
