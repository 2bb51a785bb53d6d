"""Made-up people on made-up result pages, in AdSERP's raw form and with the truth of what the files hold."""

from fixate_jax.data.synthetic.adserp.generator import Truth, prepare, write_adserp

__all__ = ["Truth", "prepare", "write_adserp"]
