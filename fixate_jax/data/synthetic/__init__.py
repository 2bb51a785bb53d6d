"""Made-up people, to be had without any raw data: films of RecGaze's kind, result pages of AdSERP's, simpler pages."""

from fixate_jax.data.synthetic import adserp, carousel, choice, recgaze

__all__ = ["adserp", "carousel", "choice", "recgaze"]
