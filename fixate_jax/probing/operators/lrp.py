"""AttnLRP proper: relevance propagated through every layer of the decoder down to the embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.probing.operators.input_gradient import Embeddings, embedding_gradient, times_gradient
from fixate_jax.probing.rules import LrpRules
from fixate_jax.probing.trace import Probe, Trace, operator


@operator()
def lrp(trace: Trace) -> Probe:
    """R_j = Σ x_j · ∂ℓ/∂x_j at the embeddings, the gradient under AttnLRP's rules (Achtibat et al., ICML 2024).

    Relevance starts as ℓ itself and goes back through the final norm and all layers, tapped or not. A page token's is
    summed over its levels. The model's values and the logits' own gradient are the plain model's.

    Args:
        trace: the model; what relevance goes through is the whole of its decoder.

    Returns:
        Logits and signed relevance; see :func:`conservation_error` for its sum.
    """
    at = Embeddings.of(trace)
    logits, gradient = embedding_gradient(trace, at, LrpRules())
    return Probe(logits, times_gradient(at, gradient))


def conservation_error(probe: Probe, trace: Trace) -> Float[Array, "batch branch"]:
    """(Σ_j R_j − ℓ) / |ℓ|: how much of ℓ relevance over all positions has gained or lost on its way.

    LRP wants 0. Its linear maps, norms, activations, products and residuals conserve relevance exactly, Qwen3 having no
    biases there. A softmax does not: R_i = s_i (R_Ai − A_i Σ R_A) sums to anything, since shifting all scores s changes
    R but not A; what is missing is the Taylor expansion's constant, which belongs to no input. Biases of queries, keys
    and values, where a checkpoint has them, keep their share likewise. Masked scores and padding get no relevance and
    lose none. The error is large where ℓ is next to 0, being relative to it.

    Args:
        probe: of an operator that ends at the embeddings.
        trace: what it was made from.
    """
    wanted = trace.target(probe.logits)
    return (probe.relevance.sum(-1) - wanted) / jnp.abs(wanted)
