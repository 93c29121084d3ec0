"""Settings of the self_generate command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_jax.config.encode import TextConfig
from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class SelfGenerateConfig:
    """A job of self-generated data; `configs/self_generate.py` builds it as a ConfigDict.

    What decides the examples:

    - `model`: the teacher's model folder or training workdir (its EMA);
    - `num_samples`, `seed`: example i depends on the seed and i only, besides its label or prompt;
    - `sampler`, `steps`, `cfg_scale`, `cfg_channels`: as in `jobs.drawing.Protocol`;
    - `label_policy`: for class labels, a row of `jobs.labels.LABEL_POLICIES`;
    - `prompt_file`: for captions, one prompt per line, which take turns;
    - `text`: the encoder of the prompts, whose features are stored with the samples;
    - `size`: height and width in pixels, for captions; empty: the nominal size of the teacher;
    - `dtype`: what the teacher computes in; samples are float32 in any case;
    - `shard_size`: examples per file; `split`: what they are called together.

    `vae` is the model folder of the teacher's VAE: for a teacher whose folder does not name it, and
    to decode the images of the grid. `batch_size` counts examples over the devices of a process.
    """

    model: str
    num_samples: int = 10_000
    seed: int = 0
    sampler: str = "ddpm"
    steps: str = "250"
    cfg_scale: float = 1.0
    cfg_channels: str = "three"
    label_policy: str = "balanced"
    prompt_file: str = ""
    text: TextConfig = field(default_factory=TextConfig)
    size: tuple[int, ...] = ()
    vae: str = ""
    dtype: str = "float32"
    batch_size: int = 64
    shard_size: int = 512
    split: str = "train"

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
