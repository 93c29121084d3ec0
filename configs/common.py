"""Settings that experiment files share, and all keys with their defaults."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from lit_jax.config import TrainConfig


def base() -> ConfigDict:
    """Return all keys of `TrainConfig` with their defaults. Locked: a misspelt key is an error."""
    return ConfigDict(dataclasses.asdict(TrainConfig()))


def choose(argument: str, known: tuple[str, ...]) -> str:
    """Return the argument after the colon of `--config FILE:ARGUMENT`, checked."""
    if argument not in known:
        raise ValueError(f"config argument {argument!r} is not one of {', '.join(known)}")
    return argument


def digits() -> ConfigDict:
    """Return the setting of the 8 x 8 digits: data, and a backbone that trains on a laptop."""
    config = base()
    config.batch_size = 64
    config.data.name = "digits"
    config.data.data_dir = "runs/demo/data"
    config.model.overrides = ConfigDict(
        {
            "input_size": 8,
            "patch_size": 1,
            "in_channels": 1,
            "hidden_size": 64,
            "depth": 4,
            "num_heads": 4,
            "num_classes": 10,
        }
    )
    return config


def shapes() -> ConfigDict:
    """Return the setting of the text-to-image demo: coloured shapes as latents of 8 x 8 x 4, and
    a PixArt that trains on a laptop. Captions as in the LiT paper: 60 % long, 40 % short, one in
    ten dropped."""
    config = base()
    config.batch_size = 64
    config.data.name = "latents"
    config.data.data_dir = "runs/demo-t2i"
    config.data.vae = "runs/t2i-models/vae"
    config.data.caption_weights = (0.6, 0.4)
    config.model.name = "PixArt"
    config.model.overrides = ConfigDict(
        {
            "input_size": 8,
            "hidden_size": 128,
            "depth": 4,
            "caption_channels": 64,
            "model_max_length": 24,
            "class_dropout_prob": 0.1,
        }
    )
    config.model.scan_unroll = 4  # four small layers: a quarter less time per step on a CPU
    config.optimizer.clip_norm = 1.0
    return config


def steps_of(text: str) -> int:
    """Return the steps that papers write as "400K" (400,000) or "1.4M" (1,400,000)."""
    return round(float(text[:-1]) * {"K": 1_000, "M": 1_000_000}[text[-1]])


def imagenet(size: str, side: int = 256) -> ConfigDict:
    """Return ImageNet at side x side as VAE latents of an eighth of that, and the optimiser of
    DiT and LiT: AdamW at a constant 1e-4 without weight decay, batch 256, EMA 0.9999. The large
    sizes split their state over all devices and keep only matrix products for the backward pass.

    size: "S/2" ... "XL/8". The data are made by `python -m lit_jax encode`, with the VAE of
    `data.vae`.
    """
    config = base()
    if size.startswith(("L", "XL")):
        config.mesh.data, config.mesh.fsdp = 1, -1
        config.model.remat = "dots"
    config.model.overrides = ConfigDict(
        {
            "input_size": side // 8,
            "in_channels": 4,
            "num_classes": 1000,
            "class_dropout_prob": 0.1,
            "qkv_bias": True,
        }
    )
    config.total_steps = 400_000
    config.batch_size = 256
    config.data.name = f"imagenet{side}_latents"
    config.data.data_dir = "data"
    config.data.vae = "models/sd-vae-ft-ema"
    config.data.flip = True
    config.data.workers = 4  # per host: more than eight H200 consume (docs/data.md)
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.ema.decay = 0.9999
    config.checkpoint_every = 10_000
    return config


# Size -> heads of softmax attention in DiT, and of linear attention in LiT (LiT, section 4).
SOFTMAX_HEADS = {"S/2": 6, "B/2": 12, "L/2": 16, "XL/2": 16}
LINEAR_HEADS = {"S/2": 2, "B/2": 3, "L/2": 4, "XL/2": 4}


def lit(size: str, heads: int, side: int = 256) -> ConfigDict:
    """Return a LiT on ImageNet from scratch: ReLU linear attention with a 5 x 5 convolution."""
    config = imagenet(size, side)
    config.model.name = f"LiT-{size}"
    config.model.overrides.num_heads = heads
    config.model.overrides.kernel_size = 5
    config.model.overrides.kernel_fn = "relu"
    return config


def model_folder(size: str, *rest: str) -> str:
    """Return the folder of a DiT that a student starts or learns from: models/DiT-S-2-800K."""
    return "models/" + "-".join(["DiT", size.replace("/", "-"), *rest])


def text_to_image(name: str, side: str, data: str) -> ConfigDict:
    """Return a text-to-image model as large as PixArt-Sigma at side x side pixels, on the data set
    `data` of latents and captions: bfloat16, the state split over all devices, the published model
    of this size as its teacher, grids as PixArt-Sigma draws them.
    """
    config = base()
    config.model.name = name
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.overrides = ConfigDict(
        {
            "input_size": int(side) // 8,
            "pe_interpolation": int(side) / 512,
            "model_max_length": 300,
            "class_dropout_prob": 0.1,
        }
    )
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.data.name = data
    config.data.vae = "models/sdxl-vae"
    config.data.workers = 4
    config.distill.teacher = f"models/PixArt-Sigma-XL-2-{side}"
    config.sample.sampler, config.sample.steps = "dpm_solver", "20"
    config.sample.cfg_scale = 4.5
    return config


def clear(config: ConfigDict, window: str) -> None:
    """Set CLEAR's recipe for a student on its teacher's weights: attention in circles, everything
    inherited, only the projections of self-attention trained, and the loss

        L_simple + 0.5 L_noise + 0.5 L_attention (the layers 0, 4, 8, ...)

    with AdamW at 1e-4, weight decay 1e-4, clipped at norm 1, 10K steps of 32 examples that the
    teacher drew itself. `inherit.source` and `distill.teacher` are the caller's.

    window: "r8" or "r8-f4", radius in tokens and, with far tokens, side of the patches that are
    pooled. AdamW is the alternative of CLEAR's script to Prodigy. lambda_2 is 0: CLEAR's loss has
    no such term, and the diffusion loss trains the variance as it is. CLEAR keeps no moving
    average; that of 0.999 forgets the start within a run of this length. Examples that a model
    drew are never mirrored.
    """
    radius, _, factor = window.partition("-")
    config.model.overrides.window_size = int(radius.removeprefix("r"))
    config.inherit.policy = "all"
    if factor:
        config.model.overrides.down_factor = int(factor.removeprefix("f"))
    config.inherit.freeze = (r"^(?!blocks/attn/(q|k|v|out|pool)/)",)
    config.distill.noise_weight = 0.5
    config.distill.variance_weight = 0.0
    config.distill.attention_weight = 0.5
    config.distill.attention_every = 4
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.batch_size = 32
    config.total_steps = 10_000
    config.checkpoint_every = 1_000
    config.data.flip = False
    config.ema.decay = 0.999
