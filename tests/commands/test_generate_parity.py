"""A whole generation against diffusers' PixArtSigmaPipeline on the same weights, from the same
noise: tokenizer, T5, denoiser, guidance, sampler and VAE at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.generate.job import generate
from lit_jax.config.generate import GenerateConfig
from lit_jax.config.protocol import CAPTIONS
from lit_jax.diffusion.samplers import per_image_noise
from lit_jax.sampling.sampler import prompt_keys
from support.generate_cases import PROMPTS, pixels
from support.live_parity import live_seed, randomise_, state_of
from support.text_encoder_cases import write_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LENGTH, SIZE, COUNT = 30, (16, 32), 2


def networks() -> dict[str, Any]:
    """Tiny networks of the pipeline's kinds."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return {
        "transformer": diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            caption_channels=16,
            interpolation_scale=1.0,
            use_additional_conditions=False,
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
            **blocks,
        ),
        "text_encoder": transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=200,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ),
    }


def save(path: Path, network: Any, hub: dict[str, Any]) -> None:
    """A torch network as a model folder."""
    state = state_of(network)
    config = detect_config(state, hub=hub)
    save_model_dir(path, config, import_params(state, config)[0], {"source": "live"})


@pytest.mark.parametrize("negative", ["", "a blue square"])
def test_equals_the_pipeline_of_diffusers(tmp_path: Path, negative: str) -> None:
    seed = live_seed() % 2**31
    parts = {name: network.eval() for name, network in networks().items()}
    for offset, (name, network) in enumerate(parts.items()):
        randomise_(network, seed + offset)
        hub = network.config.to_dict() if name == "text_encoder" else dict(network.config)
        save(tmp_path / name, network, hub)
    with torch.no_grad():  # so that pictures are more than black and white
        parts["transformer"].proj_out.weight.mul_(0.2)
        parts["transformer"].proj_out.bias.mul_(0.2)
    save(tmp_path / "model", parts["transformer"], dict(parts["transformer"].config))
    spiece = write_tokenizer(tmp_path / "text_encoder")
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=transformers.T5Tokenizer.from_pretrained(str(spiece.parent)),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
        ),
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)

    keys = prompt_keys(seed, [PROMPTS[0]] * COUNT, range(COUNT))
    noise_BxhxwxC, _ = per_image_noise(keys, (SIZE[0] // 2, SIZE[1] // 2, 4))
    images_BxHxWxC = pipeline(
        PROMPTS[0],
        negative_prompt=negative,
        num_inference_steps=20,
        guidance_scale=4.5,
        num_images_per_prompt=COUNT,
        height=SIZE[0],
        width=SIZE[1],
        latents=torch.from_numpy(np.moveaxis(np.asarray(noise_BxhxwxC), -1, 1).copy()),
        clean_caption=False,
        use_resolution_binning=False,
        max_sequence_length=LENGTH,
        output_type="np",
    ).images
    config = GenerateConfig(
        model=str(tmp_path / "model"),
        text_encoder=str(tmp_path / "text_encoder"),
        vae=str(tmp_path / "vae"),
        out=str(tmp_path / "i.png"),
        prompt=PROMPTS[0],
        negative_prompt=negative,
        num_images=COUNT,
        size=SIZE,
        protocol=dataclasses.replace(CAPTIONS, sampler="dpm_solver_diffusers", seed=seed),
        null_mask="own",
        max_length=LENGTH,
    )
    generate(config, lambda _: None)
    for number, expected_HxWxC in enumerate(255 * images_BxHxWxC):
        picture = pixels(tmp_path / f"i_{number}.png")
        assert picture.std() > 10
        # They round, we truncate after adding a half: 127.5 x + 128 against 127.5 (x + 1).
        assert np.abs(picture - expected_HxWxC).max() < 0.51
