"""Settings of the cost command."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class CostConfig:
    """A cost job.

    - `models`: names of models, each perhaps with arguments ("CLEAR-S/2 window_size=16"), or model
      folders;
    - `resolutions`: sides of square images in pixels; `vae_factor` of them are one latent pixel per
      axis, 1 for models of pixels;
    - `compile_up_to`: up to this resolution the compiler counts, too; 0 for not at all;
    - `batch_size` and `dtype`: of the compiled programs. Closed forms are per image;
    - `out`: the folder with tables and plots.
    """

    models: tuple[str, ...]
    out: str
    resolutions: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    vae_factor: int = 8
    compile_up_to: int = 1024
    batch_size: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("models", "resolutions", "out"):
            flag = name.removesuffix("s") if name == "models" else name
            require(bool(getattr(self, name)), f"--{flag} is empty; see cost --help")
        require(
            len(set(self.models)) == len(self.models),
            f"--model {','.join(self.models)} names a model twice",
        )
        limit(self, "an integer of at least 1", "vae_factor", "batch_size")
        limit(self, "at least 0", "compile_up_to")
        for resolution in self.resolutions:
            require(
                resolution > 0 and resolution % self.vae_factor == 0,
                f"--resolutions has {resolution}; it must be a multiple of vae_factor"
                f" {self.vae_factor}",
            )
        object.__setattr__(self, "resolutions", tuple(sorted(set(self.resolutions))))
