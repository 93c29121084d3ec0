"""Settings of the self_generate command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_jax.config.encode import TextConfig
from lit_jax.config.protocol import Protocol
from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class SelfGenerateConfig:
    """Training data that a teacher draws; `configs/self_generate.py` builds it as a ConfigDict."""

    model: str = setting(help="model folder or training workdir of the teacher")
    num_samples: int = setting(10000, help="number of examples")
    seed: int = setting(0, help="seed; example i depends on the seed and on i only")
    sampler: str = setting(
        "ddpm", help="ddpm, ddim, dpm_solver, dpm_solver_diffusers or dpm_solver_logsnr"
    )
    steps: str = setting("250", help="sampler steps")
    cfg_scale: float = setting(1.0, help="scale of classifier-free guidance; 1 is no guidance")
    cfg_channels: str = setting("three", help="guided channels: three or all")
    label_policy: str = setting("balanced", help="balanced (in turn) or uniform (random)")
    prompt_file: str = setting("", help="file with one prompt per line, for captions")
    text: TextConfig = field(default_factory=TextConfig)
    size: tuple[int, ...] = setting(
        (), help="height and width in pixels, for captions; empty: those of the teacher"
    )
    vae: str = setting(
        "", help="model folder of the VAE, where the teacher records none, and for the grid"
    )
    dtype: str = setting("float32", help="computation of the teacher: float32 or bfloat16")
    batch_size: int = setting(64, help="examples per batch, over the devices of a process")
    shard_size: int = setting(512, help="examples per file: the cost of a kill")
    split: str = setting("train", help="name of the split")

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.sampler, self.steps, self.cfg_scale, self.cfg_channels, seed=self.seed)

    def __post_init__(self) -> None:
        require(bool(self.model), "model is empty; give the model folder of the teacher")
        limit(self, "an integer of at least 1", "num_samples", "batch_size", "shard_size")
        require(
            not self.size or (len(self.size) == 2 and min(self.size) > 0),
            f"size is {self.size}; it must be (height, width) in pixels, or ()",
        )
        require(
            self.split.replace("_", "a").isalnum(),
            f"split is {self.split!r}; it must be the name of a whole split, as 'train'",
        )
