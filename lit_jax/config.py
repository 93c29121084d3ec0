"""Typed configuration: frozen dataclasses and the one border where a ConfigDict becomes typed.

Floor 0: imports nothing of the package. Every default of the project lives in a field of this
file or in a file of `configs/`; nothing is read with a fallback value anywhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Size = int | tuple[int, int]

# Fields of DiTConfig that say how a network is computed, not which network it is.
COMPUTE_FIELDS = ("dtype", "remat", "scan_unroll")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is no row of a table: lists the rows and the nearest one."""
    rows = sorted(known)
    lower = {row.lower(): row for row in rows}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(rows)})")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


_LIMITS: dict[str, Callable[[Any], bool]] = {
    "an integer of at least 1": lambda value: isinstance(value, int) and value >= 1,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "positive": lambda value: 0 < value < math.inf,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "odd, or None": lambda value: value is None or (value > 0 and value % 2 == 1),
}


def _limit(config: Any, limit: str, *keys: str) -> None:
    """Refuses fields outside a row of _LIMITS, NaN included. Keys as the user writes them."""
    for key in keys:
        value = getattr(config, key.split(".")[-1])
        _require(_LIMITS[limit](value), f"{key} is {value!r}; it must be {limit}")


@dataclass(frozen=True)
class DiTConfig:
    """Architecture of a DiT or LiT. Arguments carry the names of the official implementation.

    `num_heads` counts softmax heads for `mixer="softmax"` and linear-attention heads otherwise.
    `num_classes=0` makes the model unconditional; `class_dropout_prob=0` removes the null row of
    the label table. `kernel_size=None` removes the depth-wise convolution of a linear mixer.
    """

    family: str = "DiT"
    mixer: str = "softmax"
    input_size: Size = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout_prob: float = 0.1
    learn_sigma: bool = True
    qkv_bias: bool = True
    kernel_size: int | None = 5
    kernel_fn: str = "relu"
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.input_size, list):
            object.__setattr__(self, "input_size", tuple(self.input_size))
        sizes = ("patch_size", "in_channels", "hidden_size", "depth", "num_heads", "scan_unroll")
        _limit(self, "an integer of at least 1", *sizes)
        _limit(self, "positive", "mlp_ratio")
        _limit(self, "in [0, 1)", "class_dropout_prob")
        _limit(self, "odd, or None", "kernel_size")
        size, patch, D, heads = self.input_size, self.patch_size, self.hidden_size, self.num_heads
        pair = isinstance(size, int) or len(size) == 2
        _require(pair, f"input_size is {size}; it must be a side or (height, width)")
        tiled = all(side > 0 and side % patch == 0 for side in self.image_size)
        _require(tiled, f"input_size {size} is not a multiple of patch_size {patch}")
        _require(D % heads == 0, f"hidden_size {D} is not divisible by num_heads {heads}")
        _require(D % 4 == 0, f"hidden_size {D} is not divisible by 4, as the position table needs")
        classes = self.num_classes
        _require(classes >= 0, f"num_classes is {classes}; use 0 for an unconditional model")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model input, in latent or image pixels."""
        if isinstance(self.input_size, int):
            return self.input_size, self.input_size
        return self.input_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def null_label(self) -> int | None:
        """Index of the null class of classifier-free guidance, None if the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout_prob > 0 else None


def architecture(config: DiTConfig) -> dict[str, Any]:
    """The fields of `config` that define the network, ready for JSON."""
    fields = dataclasses.asdict(config)
    for name in COMPUTE_FIELDS:
        del fields[name]
    if isinstance(config.input_size, tuple):
        fields["input_size"] = list(config.input_size)
    return fields


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
    """Training data: a row of the data registry, prepared under `data_dir`."""

    name: str = "digits"
    data_dir: str = "data"
    split: str = "train"
    flip: bool = False


@dataclass(frozen=True)
class DistillConfig:
    """Hybrid distillation, Eq. 5-7 of the LiT paper. `teacher=""` trains without a teacher.

    `noise_weight` is lambda_1, `variance_weight` lambda_2, `variance_reading` a row of
    `objectives.VARIANCE_READINGS`.
    """

    teacher: str = ""
    noise_weight: float = 0.5
    variance_weight: float = 0.05
    variance_reading: str = "raw"

    def __post_init__(self) -> None:
        _limit(self, "at least 0", "distill.noise_weight", "distill.variance_weight")
        _require(
            not self.teacher or self.noise_weight + self.variance_weight > 0,
            f"distill.teacher is {self.teacher!r}, but distill.noise_weight and"
            " distill.variance_weight are both 0; set one of them, or distill.teacher=''",
        )


@dataclass(frozen=True)
class InheritConfig:
    """Where a new run takes its first parameters from. `source=""` starts from scratch.

    `reinitialise` lists regular expressions of paths that keep the student's own values although
    the policy would inherit them; `freeze` lists paths that the optimiser never changes.
    """

    source: str = ""
    policy: str = "all_but_attention"
    reinitialise: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule.

    `schedule` is a row of `training.optimizer.SCHEDULES`; `clip_norm=0` switches clipping off.
    """

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
        _limit(self, "positive", "optimizer.learning_rate", "optimizer.eps")
        _limit(self, "in [0, 1)", "optimizer.b1", "optimizer.b2")
        _limit(self, "at least 0", "optimizer.weight_decay", "optimizer.clip_norm")
        _limit(self, "at least 0", "optimizer.warmup_steps")
        _limit(self, "at least 1", "optimizer.accumulation")


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the parameters. With `warmup` the decay of step s is
    min(decay, (1 + s) / (10 + s)), which keeps short runs free of their initial values."""

    decay: float = 0.9999
    warmup: bool = False

    def __post_init__(self) -> None:
        _limit(self, "in [0, 1)", "ema.decay")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1, which takes all that are left."""

    data: int = -1
    fsdp: int = 1

    def __post_init__(self) -> None:
        sizes = [self.data, self.fsdp]
        _require(
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
        _limit(self, "at least 0", "sample.every")
        _limit(self, "at least 1", "sample.count")


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
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be in [0, 2**32)")
        _limit(self, "at least 1", "total_steps", "batch_size", "log_every")
        _limit(self, "at least 1", "checkpoint_every", "keep_checkpoints")
        batch, parts = self.batch_size, self.optimizer.accumulation
        message = f"batch_size {batch} is not divisible by optimizer.accumulation {parts}"
        _require(batch % parts == 0, message)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds the dataclass `cls` from a (nested) mapping, strictly; see `typed_fields`."""
    return cls(**typed_fields(cls, values, where))


def typed_fields(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` for some fields of the dataclass `cls`, as the types of those fields.

    Raises ValueError for an unknown key (naming the nearest one) and for a value of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_name(f"key of {where}", key, names)
        arguments[key] = _typed(hints[key], value, f"{where}.{key}")
    return arguments


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; integers are accepted where floats are asked for."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a group of keys")
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _typed(option, value, where)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, (tuple, list)):
        item = typing.get_args(hint)[0]
        return tuple(_typed(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint, type(value)) != (int, bool):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} is {value!r} ({type(value).__name__}); it must be {name}")
