"""Settings of the sample command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_jax.config.protocol import Protocol
from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require, unknown_name

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class SampleConfig:
    """Images of a model on class labels."""

    model: str = setting(help="model folder or training workdir (its EMA is used)")
    out: str = setting(help="folder for samples.npz; the same command resumes it")
    num_samples: int = setting(help="number of images")
    protocol: Protocol = field(default_factory=Protocol)
    labels: tuple[int, ...] = setting(
        (), group="labels", help="class labels such as 207,360, repeated in this order"
    )
    label_policy: str = setting(
        "balanced", group="labels", help="without --labels: balanced (in turn) or uniform (random)"
    )
    vae: str = setting("", group="model", help="model folder of the VAE, for a model of latents")
    save_latents: bool = setting(
        False, group="model", help="keep the latents too, in latents.npz; --vae is then optional"
    )
    dtype: str = setting(
        "float32", group="model", help="computation of the denoiser: float32 or bfloat16"
    )
    window_size: int = setting(
        0, group="model", help="CLEAR without training: radius of the windows of a softmax model"
    )
    down_factor: int = setting(
        0, group="model", help="with --window_size: side in tokens of the pooled patches"
    )
    batch_size: int = setting(
        64, group="speed", help="images per batch, over the devices of a process"
    )
    decode_batch_size: int = setting(
        8, group="speed", help="images that the VAE decodes at a time, per device"
    )
    sequence: int = setting(1, group="speed", help="devices that share the rows of one image")
    shard_size: int = setting(512, group="speed", help="images per shard: the cost of a kill")

    def __post_init__(self) -> None:
        for name in ("model", "out"):
            require(bool(getattr(self, name)), f"--{name} is empty; see sample --help")
        limit(self, "an integer of at least 1", "num_samples", "batch_size", "shard_size")
        limit(self, "an integer of at least 1", "decode_batch_size", "sequence")
        limit(self, "at least 0", "window_size", "down_factor")
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
