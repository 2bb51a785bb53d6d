"""Every setting of the library, as frozen dataclasses: the one place for hyperparameters.

Presets are YAML files in ``configs/``; any field can be set from the command line (``--prompt.tokens 4``).
Defaults are the paper's values unless the docstring says otherwise.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.errors import require
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.prompts import Position


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The soft prompt: P_u = Σ_m softmax(z_u)_m B_m."""

    basis: int = 8
    """M, number of shared basis prompts."""
    tokens: int = 16
    """K, soft tokens a prompt."""
    init_scale: float = 0.01
    """Standard deviation of the basis at the start."""
    personal: bool = True
    """False: z stays constant, everybody shares one prompt."""
    position: Position = "before"
    """Where the soft prompt stands: before the whole input (the paper), or right behind the page, whose keys and values
    are then computed once for all users and steps (with the operators attn_lrp, attention and attention_gradient)."""

    @property
    def sizes(self) -> dict[str, Any]:
        """What :func:`fixate_jax.prompts.init_prompt` asks for."""
        return {"basis": self.basis, "tokens": self.tokens, "init_scale": self.init_scale}

    def __post_init__(self) -> None:
        require(self.basis >= 1, "prompt.basis", self.basis, "at least 1 is needed")
        require(self.tokens >= 1, "prompt.tokens", self.tokens, "at least 1 is needed")
        require(self.init_scale >= 0, "prompt.init_scale", self.init_scale, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """How relevance of the page's tokens is read off the model."""

    name: str = "attn_lrp"
    """attn_lrp, attention, attention_gradient, rollout, glimpse, input_gradient, integrated_gradients, lrp; or an
    operator of your own to import (my_module:name)."""
    normalise: Literal["signed", "abs", "positive"] = "signed"
    """attn_lrp: divide rows by their signed sum (the paper), by the sum of magnitudes (stable), or keep only what is
    positive and divide by its sum (can be steered)."""
    grad_scale: float = 0.1
    """c in G = c · ∂ℓ/∂A."""
    stop_gradient: bool = False
    """attn_lrp, attention_gradient, glimpse: take G for a constant where the loss is differentiated, which saves the
    second order."""
    masked_gradients: bool = True
    """glimpse: count G also where causality masks attention in the sums that weigh heads and layers, as the published
    code does."""
    steps: int = 16
    """integrated_gradients: points at which the integral is taken."""
    layer_weights: tuple[float, ...] | None = None
    """Weights of the tapped layers, lowest first (None: w_l = l / Σl, the paper's)."""
    eps: float = 1e-4
    """ε of the operator's divisions and of the slot normalisation."""
    assignment: Literal["centre", "area"] = "centre"
    """Whose a visual token is: the slot's that holds its centre (the paper), or every slot's by the share of its area,
    for slots smaller than a token."""
    settings: tuple[str, ...] = ()
    """Settings of an operator of your own, as name=value."""

    def __post_init__(self) -> None:
        require(self.eps > 0, "operator.eps", self.eps, "must be above 0")
        require(self.steps >= 1, "operator.steps", self.steps, "at least 1 is needed")
        weights = self.layer_weights
        require(
            weights is None or (min(weights, default=-1.0) >= 0 and sum(weights) > 0),
            "operator.layer_weights",
            weights,
            "weights must not be negative, and not all 0",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """L = ntp_weight · L_NTP + λ(t) · L_attn + beta · mean‖z‖²."""

    alignment: str = "weighted_kl"
    """How slot attention is compared with gaze: kl, weighted_kl, coarse_kl, i_divergence, or a loss of your own
    (my_module:name, which is imported); none: next-token prediction alone."""
    relevance: Literal["click", "own"] = "click"
    """Whose answer's relevance is aligned in training: the clicked slot's label (FixATE), or what the model itself
    would answer, as in free-running evaluation. The same for the operator attention where labels are one token."""
    gaze: Literal["session", "mean", "other_session"] = "session"
    """Which gaze is aligned with in training: the session's own; or, as controls, the person's mean gaze by slot (place
    alone can be learned) or that of another of the person's sessions (habits kept, content broken)."""
    gamma: float = 2.0
    """γ of the importance weights ω ∝ (g + 1e-8)^γ; 0 switches them off."""
    top_k: int = 5
    """Slots kept apart by coarse_kl, and k of the top-k JS metric."""
    ntp_weight: float = 0.5
    """Weight of next-token prediction of the clicked slot's label."""
    attention_weight: float = 0.5
    """Final λ."""
    warmup: int = 30
    """w: λ is 0 for w optimizer steps, then grows linearly over w steps."""
    beta: float = 1e-3
    """Weight of the penalty on z."""
    aligned_tokens: int | None = None
    """The first N soft tokens learn from alignment alone, the others from next-token prediction alone (None: all from
    both)."""

    def __post_init__(self) -> None:
        known = ("kl", "weighted_kl", "coarse_kl", "i_divergence", "none")
        wanted = f"choose one of {', '.join(known)}, or import a loss of your own (module:name)"
        require(self.alignment in known or ":" in self.alignment, "objective.alignment", self.alignment, wanted)
        require(self.gamma >= 0, "objective.gamma", self.gamma, "must not be negative")
        require(self.top_k >= 1, "objective.top_k", self.top_k, "at least 1 is needed")
        few = self.aligned_tokens is None or self.aligned_tokens >= 1
        require(few, "objective.aligned_tokens", self.aligned_tokens, "at least 1 is needed")
        require(self.warmup >= 0, "objective.warmup", self.warmup, "must not be negative")
        for name in ("ntp_weight", "attention_weight", "beta"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "must not be negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with separate groups for the basis B and the coefficients z; z is updated lazily, user by user."""

    basis_lr: float = 1e-3
    """Learning rate of B."""
    user_lr: float = 1e-3
    """Learning rate of z."""
    basis_weight_decay: float = 1e-3
    """Decoupled weight decay of B."""
    user_weight_decay: float = 1e-3
    """Decoupled weight decay of z."""
    basis_clip: float = 100.0
    """Largest global gradient norm of B."""
    user_clip: float = 5.0
    """Largest global gradient norm of all z together."""
    decay: Literal["none", "cosine"] = "none"
    """How both rates change: not at all (the paper), or down to 0 over all planned steps by half a cosine."""

    def __post_init__(self) -> None:
        for name in ("basis_lr", "user_lr", "basis_weight_decay", "user_weight_decay"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must not be negative")
        for name in ("basis_clip", "user_clip"):
            require(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop around the step."""

    seeds: tuple[int, ...] = (42,)
    """Each seeds a prompt's start and the order of sessions; a run tunes once per seed and reports the spread."""
    epochs: int = 30
    """Largest number of epochs."""
    batch: int = 4
    """Sessions a micro-batch."""
    accumulate: int = 2
    """Micro-batches an optimizer step."""
    eval_batch: int = 16
    """Sessions a batch in evaluation."""
    validate_every: int = 2
    """Epochs between validations."""
    patience: int = 5
    """Stop after so many validations without gain."""
    checkpoint_every: int = 100
    """Optimizer steps between checkpoints within an epoch (one is also written after each validation)."""
    keep_checkpoints: int = 3
    """Checkpoints kept on disk."""
    max_lengths: int = 4
    """Largest number of sequence-length buckets, each one compilation."""
    selection: Literal["TF", "FR"] = "FR"
    """The best epoch is chosen on validation with relevance for the true (TF) or for the model's own answer (FR)."""
    score: Literal["reported", "published"] = "reported"
    """What it is chosen by: KL and log-loss, as shares of the uniform predictor's (ours, for any number of slots),
    or the paper's sum of cosine, hits and overlaps, which is blind to KL and constant in part where slots are few."""
    ntp_baseline: bool = True
    """Also tune prompts on next-token prediction alone, to report beside."""
    swap_control: bool = True
    """Also evaluate every session under other users' prompts."""
    swaps: int | None = None
    """Under how many others' prompts (None: all others'); every user's prompt is used equally often."""
    calibrate: bool = True
    """Also show FixATE and the backbone after a calibration that is fitted on validation sessions: one exponent of
    attention, one share of the person's mean gaze, one temperature of the answers."""
    pictures: int = 4
    """Test pages to draw as picture files."""
    report_sessions: int = 6
    """Test sessions of each user that can be chosen in the report (fewer where they would take over about 4 MB)."""
    mesh: tuple[int, int, int] = (1, 1, 1)
    """Devices along (data, fsdp, tensor): how many share a batch with the weights whole on each, how many share a batch
    and keep a part of the weights each, how many share every matrix product."""

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "train.seeds", self.seeds, "at least 1 is needed")
        require(len(set(self.seeds)) == len(self.seeds), "train.seeds", self.seeds, "each seed once")
        require(min(self.seeds) >= 0, "train.seeds", self.seeds, "must not be negative")
        require(self.swaps is None or self.swaps >= 1, "train.swaps", self.swaps, "at least 1 is needed")
        for name in ("pictures", "report_sessions"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must not be negative")
        require(min(self.mesh) >= 1, "train.mesh", self.mesh, "at least 1 along each axis is needed")
        parts = self.mesh[0] * self.mesh[1]
        require(
            self.batch % parts == 0 and self.eval_batch % parts == 0,
            "train.mesh",
            self.mesh,
            f"train.batch and train.eval_batch must be multiples of data × fsdp = {parts}",
        )
        names = ("epochs", "batch", "accumulate", "eval_batch", "validate_every", "patience")
        for name in (*names, "checkpoint_every", "keep_checkpoints", "max_lengths"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class UsersConfig:
    """Per-user tuning (`fixate tune-users`): everybody by themselves, many side by side.

    Rates, decay and clipping are the optimizer's: those of z for coefficients, those of B for private prompts. The
    schedules of `objective` and `optimizer` count a user's own steps.
    """

    mode: Literal["coefficients", "private"] | None = None
    """What is tuned: z_u over a frozen basis, or a prompt for each user (None: coefficients where there is a basis)."""
    basis: Path | None = None
    """Run of `fixate train` whose trained basis to use; private prompts then start from its population prompt."""
    only: tuple[str, ...] | None = None
    """Tune these users (None: everybody with a session to learn from)."""
    steps: int = 100
    """Planned optimizer steps, the same for every user."""
    batch: int = 4
    """Sessions of a user in a step."""
    validate_every: int = 10
    """Optimizer steps between validations."""
    patience: int = 3
    """A user stops after so many validations without gain on the user's own validation sessions."""
    chunk: int | None = None
    """Users side by side on a device (None: as many as `memory_gb` allows, up to 64; on a CPU up to 2)."""
    memory_gb: float | None = None
    """Memory of a device for the tuning program, weights included, in gigabytes of 10^9 bytes (None: three quarters of
    an accelerator's, half of the main memory on a CPU)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every", "patience"):
            require(getattr(self, name) >= 1, f"users.{name}", getattr(self, name), "at least 1 is needed")
        require(self.chunk is None or self.chunk >= 1, "users.chunk", self.chunk, "at least 1 is needed")
        require(self.memory_gb is None or self.memory_gb > 0, "users.memory_gb", self.memory_gb, "must be above 0")
        require(self.only is None or len(self.only) > 0, "users.only", self.only, "name at least one user")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs; saved with it."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    users: UsersConfig = field(default_factory=UsersConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        aligned = self.objective.aligned_tokens
        fewer = aligned is None or aligned < self.prompt.tokens
        require(fewer, "objective.aligned_tokens", aligned, f"must be fewer than prompt.tokens = {self.prompt.tokens}")
