"""Settings of the cost command."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class CostConfig:
    """Parameters, products and memory of models against resolution."""

    models: tuple[str, ...] = setting(
        flag="model",
        help="names or model folders, with commas; arguments follow a name after spaces, as in"
        " 'CLEAR-S/2 window_size=16'",
    )
    out: str = setting(help="folder of the tables and plots; the same command resumes it")
    resolutions: tuple[int, ...] = setting(
        (256, 512, 1024, 2048, 4096, 8192), group="images", help="sides of square images in pixels"
    )
    vae_factor: int = setting(
        8, group="images", help="pixels per latent pixel and axis; 1 for models of pixels"
    )
    compile_up_to: int = setting(
        1024, group="compiled programs", help="largest side to compile for; 0: closed forms only"
    )
    batch_size: int = setting(1, group="compiled programs", help="images of the compiled programs")
    dtype: str = setting(
        "float32", group="compiled programs", help="their computation: float32 or bfloat16"
    )

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
