"""A training run as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_jax.config.protocol import Protocol
from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class ModelSpec:
    """A model by name (a named size or a member of a family) plus overrides of its architecture."""

    name: str = setting("LiT-S/2", help="named size or family")
    overrides: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of its architecture"}
    )
    dtype: str = setting("float32", help="computation: float32 or bfloat16")
    remat: str = setting("none", help="rematerialisation policy")
    scan_unroll: int = setting(1, help="blocks per iteration of the scan over depth")


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

    name: str = setting("digits", help="data set, or folder of latents below data_dir")
    data_dir: str = setting("data", help="folder of the data sets")
    split: str = setting("train", help="split that is read")
    flip: bool = setting(False, help="show each example mirrored half of the time")
    vae: str = setting("", help="model folder of the VAE that made the latents")
    caption_weights: tuple[float, ...] = setting(
        (), help="how often each kind of caption is used; empty: all alike"
    )
    workers: int = setting(0, help="reading processes per host; 0: threads")
    kind: str = setting(
        "", help="latents, tfds, class_folders or folder; empty: latents or tfds, as found"
    )

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

    teacher: str = setting("", help="model folder of the teacher; empty: none")
    noise_weight: float = setting(0.5, help="weight lambda_1 of the noise term")
    variance_weight: float = setting(0.05, help="weight lambda_2 of the variance term")
    variance_reading: str = setting("raw", help="quantity that the variance term compares")
    attention_weight: float = setting(0.0, help="weight of CLEAR's attention term")
    attention_every: int = setting(4, help="the attention term reads every such layer")

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

    source: str = setting("", help="model folder of the first parameters; empty: none")
    policy: str = setting("all_but_attention", help="parameters that are inherited")
    reinitialise: tuple[str, ...] = setting((), help="patterns of paths that keep their own values")
    freeze: tuple[str, ...] = setting((), help="patterns of paths that are never trained")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning-rate schedule.

    `name` is a row of `training.optimizer.OPTIMIZERS`; `eps` is that of AdamW.
    `schedule` is a row of `training.optimizer.SCHEDULES`; `clip_norm=0` switches clipping off.
    """

    name: str = setting("adamw", help="adamw or came")
    learning_rate: float = setting(0.0001, help="learning rate")
    schedule: str = setting("constant", help="schedule of the learning rate")
    warmup_steps: int = setting(0, help="steps of linear warm-up")
    b1: float = setting(0.9, help="decay of the first moment")
    b2: float = setting(0.999, help="decay of the second moment")
    eps: float = setting(1e-08, help="epsilon of AdamW")
    weight_decay: float = setting(0.0, help="decoupled weight decay")
    clip_norm: float = setting(0.0, help="limit of the global gradient norm; 0: none")
    accumulation: int = setting(1, help="parts in which a batch is computed")

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

    decay: float = setting(0.9999, help="decay of the moving average")
    warmup: bool = setting(False, help="smaller decay at first: min(decay, (1 + s) / (10 + s))")

    def __post_init__(self) -> None:
        limit(self, "in [0, 1)", "ema.decay")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1, which takes all that are left."""

    data: int = setting(-1, help="devices that split the batch; -1: all that are left")
    fsdp: int = setting(1, help="devices that split batch and parameters")

    def __post_init__(self) -> None:
        sizes = [self.data, self.fsdp]
        require(
            all(size > 0 or size == -1 for size in sizes) and sizes.count(-1) < 2,
            f"mesh data={self.data}, fsdp={self.fsdp}: sizes are positive, at most one is -1",
        )


@dataclass(frozen=True)
class GridConfig:
    """Sampling protocol of the grids drawn while training (`every=0`: none)."""

    every: int = setting(0, help="steps between grids; 0: none")
    count: int = setting(40, help="images of a grid")
    sampler: str = setting("ddim", help="sampler of the grids")
    steps: str = setting("ddim25", help="steps of the sampler")
    cfg_scale: float = setting(1.5, help="guidance of the grids")
    cfg_channels: str = setting("all", help="guided channels: three or all")

    def protocol(self, seed: int, guided: bool = True) -> Protocol:
        """Return the protocol of the grids; without guidance where the model has no null class."""
        scale = self.cfg_scale if guided else 1.0
        return Protocol(self.sampler, self.steps, scale, self.cfg_channels, seed=seed)

    def __post_init__(self) -> None:
        limit(self, "at least 0", "sample.every")
        limit(self, "at least 1", "sample.count")


@dataclass(frozen=True)
class TrainConfig:
    """A whole experiment; `configs/*.py` build it as a ConfigDict."""

    seed: int = setting(0, help="seed of everything")
    total_steps: int = setting(400000, help="steps of the run")
    batch_size: int = setting(256, help="examples per update, over all devices")
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    inherit: InheritConfig = field(default_factory=InheritConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sample: GridConfig = field(default_factory=GridConfig)
    log_every: int = setting(100, help="steps between logged lines")
    checkpoint_every: int = setting(50000, help="steps between checkpoints")
    keep_checkpoints: int = setting(2, help="checkpoints that are kept")

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be in [0, 2**32)")
        limit(self, "at least 1", "total_steps", "batch_size", "log_every")
        limit(self, "at least 1", "checkpoint_every", "keep_checkpoints")
        batch, parts = self.batch_size, self.optimizer.accumulation
        message = f"batch_size {batch} is not divisible by optimizer.accumulation {parts}"
        require(batch % parts == 0, message)
