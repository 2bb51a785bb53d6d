"""What each part of the method is worth: the preset without it, or with something else in its place."""

from dataclasses import replace

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.studies.matrix import REFERENCE, Variant, changed

LOSSES = ("kl", "weighted_kl", "coarse_kl", "i_divergence")
CURSOR = "cursor"


def variants_of(config: RunConfig) -> tuple[Variant, ...]:
    """The variants of a preset, itself first; those that would be the preset again are left out.

    - ``random_prompt``: prompts as they are at the start, nothing being learned;
    - ``no_personalisation``: z stays constant, everybody shares one prompt;
    - ``private_prompts``: no basis, every person's prompt is learned from their own sessions alone, see
      :func:`fixate_jax.lab.studies.matrix.by_themselves`;
    - ``no_alignment``, ``no_next_token``: L without L_attn, without L_NTP;
    - ``mean_gaze``, ``other_session``: controls, aligned with the person's mean gaze by slot, and with the gaze of
      another of the person's sessions;
    - ``no_weights``: γ = 0, so ω = 1, where the preset's loss has weights;
    - a variant for each other loss: ``kl``, ``weighted_kl``, ``coarse_kl`` and ``i_divergence`` with the preset's γ;
    - ``cursor``: tuned to the cursor's dwell times, measured against the eyes'; where the data set has both, and then
      every variant on the sessions that have (:func:`with_cursor`).
    """
    objective = config.objective
    weighted = objective.alignment not in ("kl", "none") and objective.gamma > 0
    found = [
        Variant(name=REFERENCE, why="the preset"),
        Variant(
            name="random_prompt",
            changes={"optimizer.basis_lr": 0.0, "optimizer.user_lr": 0.0, "train.epochs": 1},
            why="nothing is learned",
        ),
        Variant(name="no_personalisation", changes={"prompt.personal": False}, why="one prompt for everybody"),
        Variant(name="private_prompts", alone=True, why="no basis: each person's own prompt, tuned alone"),
        Variant(name="no_alignment", changes={"objective.alignment": "none"}, why="without L_attn"),
        Variant(name="no_next_token", changes={"objective.ntp_weight": 0.0}, why="without L_NTP"),
    ]
    if objective.alignment != "none":
        found += [
            Variant(name="mean_gaze", changes={"objective.gaze": "mean"}, why="control: place alone can be learned"),
            Variant(name="other_session", changes={"objective.gaze": "other_session"}, why="control: content broken"),
        ]
    if weighted:
        found.append(Variant(name="no_weights", changes={"objective.gamma": 0.0}, why="ω = 1"))
    for loss in LOSSES:
        plain = loss == "kl" and objective.alignment == "weighted_kl"  # As `no_weights`, or as the preset itself.
        twice = loss == "weighted_kl" and objective.gamma == 0  # Without weights it is the plain one.
        if loss != objective.alignment and not plain and not twice:
            weights = "" if loss == "kl" else f", γ = {objective.gamma:g}"
            found.append(Variant(name=loss, changes={"objective.alignment": loss}, why=f"L_attn: {loss}{weights}"))
    if has_cursor(config):
        found.append(
            Variant(name=CURSOR, changes={"data.signal": CURSOR}, why="tuned to the cursor, measured against the eyes")
        )
    preset = _effective(config)

    def differs(variant: Variant) -> bool:
        return variant.alone or _effective(changed(config, variant.changes, source=variant.name)) != preset

    return (found[0], *filter(differs, found[1:]))


def _effective(config: RunConfig) -> RunConfig:
    """Settings without those that make no difference: of L_attn, where it is off."""
    objective = config.objective
    if objective.alignment == "none" or objective.attention_weight == 0:
        objective = replace(objective, alignment="none", attention_weight=0.0, gamma=0.0, gaze="session")
    return replace(config, objective=objective)


def has_cursor(config: RunConfig) -> bool:
    """Whether the data set has a cursor signal beside the one that is tuned to."""
    return config.data.signal != CURSOR and any(CURSOR in s.dwell_ms for s in open_or_prepare(config.data).sessions)


def with_cursor(config: RunConfig) -> RunConfig:
    """The preset on the sessions that have every signal, so that all variants learn from the same."""
    return replace(config, data=replace(config.data, common_sessions=True)) if has_cursor(config) else config


def chosen(variants: tuple[Variant, ...], names: tuple[str, ...] | None) -> tuple[Variant, ...]:
    """The reference and the variants that are asked for (None: all).

    Raises:
        ConfigError: there is no such variant.
    """
    if names is None:
        return variants
    known = {variant.name: variant for variant in variants}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--variants {unknown[0]}: choose among {', '.join(known)}")
    return tuple(v for v in variants if v.name == REFERENCE or v.name in names)
