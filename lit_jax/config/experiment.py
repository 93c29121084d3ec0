"""A training run as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class ModelSpec:
    """A model by name (`zoo.SIZES` or a family) plus overrides of its architecture."""

    name: str = "LiT-S/2"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1


@dataclass(frozen=True)
class DataConfig:
    """Training data, found under `data_dir` by `name`.

    `kind` is "latents" (a folder that `python -m lit_jax encode` wrote) or a row of
    `data.registry.SOURCES`, whose images are trained on as pixels: "tfds" (a prepared data set in
    ArrayRecord; `name` as in `SourceConfig`), "class_folders" (`data_dir`/`name` holds a folder of
    images per class) or "folder" (all images below it, without labels). Empty: "latents" or "tfds",
    whichever the folder holds. `split` is that of a TFDS data set; folders have one.

    `vae` is the model folder of the autoencoder that made the latents. `flip` shows each example
    as its mirror image half of the time; latents must have been encoded with mirror images.
    `caption_weights` are the weights of the kinds of captions of an image, in the order in which
    they were encoded, such as (0.6, 0.4); empty: equal weights. `workers` is the number of reading
    processes per host, 0 for threads; it changes the speed, never the batches.
    """

    name: str = "digits"
    data_dir: str = "data"
    split: str = "train"
    flip: bool = False
    vae: str = ""
    caption_weights: tuple[float, ...] = ()
    workers: int = 0
    kind: str = ""

    def __post_init__(self) -> None:
        limit(self, "at least 0", "data.workers")
        weights = self.caption_weights
        require(
            not weights or (min(weights) >= 0 and sum(weights) > 0),
            f"data.caption_weights are {weights}; weights are not negative, nor all zero",
        )


@dataclass(frozen=True)
class DistillConfig:
    """Hybrid distillation, Eq. 5-7 of the LiT paper. `teacher=""` trains without a teacher.

    `noise_weight` is lambda_1, `variance_weight` lambda_2, `variance_reading` a row of
    `objectives.VARIANCE_READINGS`. `attention_weight` is that of CLEAR's third term, the attention
    outputs of the layers 0, `attention_every`, 2 `attention_every`, ...
    """

    teacher: str = ""
    noise_weight: float = 0.5
    variance_weight: float = 0.05
    variance_reading: str = "raw"
    attention_weight: float = 0.0
    attention_every: int = 4

    def __post_init__(self) -> None:
        weights = ("distill.noise_weight", "distill.variance_weight", "distill.attention_weight")
        limit(self, "at least 0", *weights)
        limit(self, "an integer of at least 1", "distill.attention_every")
        require(
            not self.teacher
            or self.noise_weight + self.variance_weight + self.attention_weight > 0,
            f"distill.teacher is {self.teacher!r}, but {', '.join(weights)} are all 0; set one of"
            " them, or distill.teacher=''",
        )

    @property
    def compares_attention(self) -> bool:
        """True if the networks must return the attention outputs of their layers."""
        return bool(self.teacher) and self.attention_weight > 0


@dataclass(frozen=True)
class InheritConfig:
    """Source of the first parameters of a new run. `source=""` starts from scratch.

    `reinitialise` lists regular expressions of paths that keep the student's own values although
    the policy would inherit them; `freeze` lists paths that the optimiser never changes.
    """

    source: str = ""
    policy: str = "all_but_attention"
    reinitialise: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning-rate schedule.

    `name` is a row of `training.optimizer.OPTIMIZERS`; `eps` is that of AdamW.
    `schedule` is a row of `training.optimizer.SCHEDULES`; `clip_norm=0` switches clipping off.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    accumulation: int = 1

    def __post_init__(self) -> None:
        limit(self, "positive", "optimizer.learning_rate", "optimizer.eps")
        limit(self, "in [0, 1)", "optimizer.b1", "optimizer.b2")
        limit(self, "at least 0", "optimizer.weight_decay", "optimizer.clip_norm")
        limit(self, "at least 0", "optimizer.warmup_steps")
        limit(self, "at least 1", "optimizer.accumulation")


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the parameters. With `warmup` the decay of step s is
    min(decay, (1 + s) / (10 + s)), which keeps short runs free of their initial values."""

    decay: float = 0.9999
    warmup: bool = False

    def __post_init__(self) -> None:
        limit(self, "in [0, 1)", "ema.decay")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1, which takes all that are left."""

    data: int = -1
    fsdp: int = 1

    def __post_init__(self) -> None:
        sizes = [self.data, self.fsdp]
        require(
            all(size > 0 or size == -1 for size in sizes) and sizes.count(-1) < 2,
            f"mesh data={self.data}, fsdp={self.fsdp}: sizes are positive, at most one is -1",
        )


@dataclass(frozen=True)
class SampleConfig:
    """Sampling protocol of the grids drawn while training (`every=0`: none)."""

    every: int = 0
    count: int = 40
    sampler: str = "ddim"
    steps: str = "ddim25"
    cfg_scale: float = 1.5
    cfg_channels: str = "all"

    def __post_init__(self) -> None:
        limit(self, "at least 0", "sample.every")
        limit(self, "at least 1", "sample.count")


@dataclass(frozen=True)
class TrainConfig:
    """A whole experiment; `configs/*.py` build it as a ConfigDict."""

    seed: int = 0
    total_steps: int = 400_000
    batch_size: int = 256
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    inherit: InheritConfig = field(default_factory=InheritConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    log_every: int = 100
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be in [0, 2**32)")
        limit(self, "at least 1", "total_steps", "batch_size", "log_every")
        limit(self, "at least 1", "checkpoint_every", "keep_checkpoints")
        batch, parts = self.batch_size, self.optimizer.accumulation
        message = f"batch_size {batch} is not divisible by optimizer.accumulation {parts}"
        require(batch % parts == 0, message)
