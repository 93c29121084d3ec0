"""Exported folders in the pipelines of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lit_jax.models.functional import apply_fn
from support.export_cases import (
    DIT,
    PIXART,
    T5,
    VAE,
    exported,
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dit_pipeline_of_diffusers_loads_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs, and its network is the exported one up to the timestep embedding that the note
    tells of: at t=0, where both embeddings are equal, the outputs agree."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, params = exported("DiT", DIT, "diffusers", "transformer")
    printed = capsys.readouterr().out
    assert (
        "note: diffusers computes the timestep embedding of DiT with other frequencies" in printed
    )
    assert "relative on these weights" in printed
    exported("SD-VAE", VAE, "diffusers", "vae")
    transformer = diffusers.DiTTransformer2DModel.from_pretrained("transformer")
    pipeline = diffusers.DiTPipeline(
        transformer, diffusers.AutoencoderKL.from_pretrained("vae"), diffusers.DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 2], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    labels = np.array([3, 1000])
    with torch.inference_mode():
        theirs = transformer(
            torch.from_numpy(x), torch.zeros(2, dtype=torch.long), torch.from_numpy(labels)
        ).sample.numpy()
    ours = jax.jit(apply_fn(config))(params, x.transpose(0, 2, 3, 1), np.zeros(2), labels)
    difference = np.abs(np.asarray(ours).transpose(0, 3, 1, 2) - theirs).max()
    assert difference < 2e-5 * np.abs(theirs).max()


def test_a_pixart_pipeline_of_diffusers_loads_the_folders() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    exported("PixArt", PIXART | {"caption_channels": 16}, "diffusers", "transformer")
    exported("SDXL-VAE", VAE, "diffusers", "vae")
    exported("T5", T5, "transformers", "text_encoder")
    encoder = transformers.T5EncoderModel.from_pretrained("text_encoder")
    tokens = torch.tensor([[3, 4, 1], [5, 1, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.inference_mode():
        features = encoder(tokens, mask).last_hidden_state
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKL.from_pretrained("vae"),
        transformer=diffusers.PixArtTransformer2DModel.from_pretrained("transformer"),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    assert json.loads(Path("vae/config.json").read_text())["scaling_factor"] == 0.13025
    images = pipeline(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=features[:1],
        prompt_attention_mask=mask[:1],
        negative_prompt_embeds=features[1:],
        negative_prompt_attention_mask=mask[1:],
        num_inference_steps=2,
        height=16,
        width=16,
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()
