"""What an image depends on, the grids of a run, and the labels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from lit_jax import sharding
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.commands.train.callbacks import draw_samples
from lit_jax.commands.train.grids import grid_drawer
from lit_jax.config import GridConfig, MeshConfig, TrainConfig
from lit_jax.config.protocol import Protocol
from lit_jax.data.transforms import to_uint8
from lit_jax.models import functional, registry
from lit_jax.runs.progress import Progress
from lit_jax.sampling import sampler
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.sampler import StepProgress, fitting_batch, label_keys, make_sampler
from support import autoencoder_cases, tiny_runs
from support.sampling import draw_images

GUIDED = Protocol(steps="6", cfg_scale=2.0, cfg_channels="all", seed=3)
COUNT = 11


def one_device() -> Mesh:
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def on_mesh(path: Path, mesh: Mesh, expect: str = "label") -> tuple[Any, Any]:
    """Configuration and placed parameters of a model folder."""
    folder = ModelFolder(path, expect)
    return folder.config, folder.params(mesh)


def draw_grid(
    config: Any, params: Any, sample: GridConfig, mesh: Mesh, path: Path, vae: Any = None
) -> np.ndarray | None:
    """The grid of a training run with these settings."""
    nothing: Any = None  # data is read for captions only
    draw = grid_drawer(TrainConfig(sample=sample), config, nothing, mesh, vae)
    return draw(params, path)


def test_images_depend_on_neither_batch_nor_devices(teacher: Path) -> None:
    images = []
    meshes = (one_device(), one_device(), sharding.make_mesh(MeshConfig()))
    for mesh, size in zip(meshes, (4, 7, 64), strict=True):
        config, params = on_mesh(teacher, mesh)
        labels = assign_labels(config, (), COUNT)
        images.append(draw_images(config, params, GUIDED, labels, COUNT, mesh, size))
    for other in images[:2]:
        # An untrained model saturates many pixels: compare the floats, too.
        np.testing.assert_allclose(other, images[2], rtol=1e-4, atol=1e-3)
        difference = to_uint8(other).astype(int) - to_uint8(images[2])
        assert np.abs(difference).max() <= 1
    assert len(np.unique(images[2].reshape(COUNT, -1), axis=0)) == COUNT


def drawn(model: Path, **changes: Any) -> np.ndarray:
    config, params = on_mesh(model, one_device())
    protocol = Protocol(**({"steps": "5"} | changes))
    labels = assign_labels(config, (4, 9), 3)
    return draw_images(config, params, protocol, labels, 3, one_device(), 3)


def test_every_option_changes_the_images(latent_model: Path) -> None:
    plain = drawn(latent_model)
    assert plain.shape == (3, 8, 8, 4) and plain.dtype == np.float32
    variants = {
        "plain": plain,
        "three": drawn(latent_model, cfg_scale=3.0),
        "all": drawn(latent_model, cfg_scale=3.0, cfg_channels="all"),
        "interval": drawn(latent_model, cfg_scale=3.0, cfg_interval=(100.0, 600.0)),
        "ddim": drawn(latent_model, sampler="ddim"),
        "dpm_solver": drawn(latent_model, sampler="dpm_solver"),
        "dpm_solver_diffusers": drawn(latent_model, sampler="dpm_solver_diffusers"),
        "steps": drawn(latent_model, steps="ddim5"),
        "seed": drawn(latent_model, seed=1),
    }
    names = list(variants)
    for i, first in enumerate(names):
        for second in names[:i]:
            difference = np.abs(variants[first] - variants[second]).max()
            assert difference > 1e-3, (first, second, difference)


def test_interval_without_steps_is_no_guidance(latent_model: Path) -> None:
    plain = drawn(latent_model)
    outside = drawn(latent_model, cfg_scale=3.0, cfg_interval=(1.0, 2.0))
    np.testing.assert_allclose(outside, plain, rtol=1e-5, atol=1e-5)


def test_grid_of_a_run(teacher: Path, tmp_path: Path) -> None:
    """Drawn while training; a model that has gone wrong does not stop the run."""
    config, params = on_mesh(teacher, one_device())
    settings = GridConfig(count=3, sampler="ddpm", steps="6", cfg_scale=2.0, cfg_channels="all")
    path = tmp_path / "g.png"
    grid = draw_grid(config, params, settings, one_device(), path)
    assert grid is not None and grid.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(Image.open(path)), grid.squeeze(-1))
    path.unlink()
    params["x_embedder"]["bias"] = params["x_embedder"]["bias"] * np.nan
    assert draw_grid(config, params, settings, one_device(), path) is None
    assert not path.exists()


def test_grid_of_latents_is_decoded(latent_model: Path, vae: Path, tmp_path: Path) -> None:
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
    config, params = on_mesh(latent_model, mesh)
    protocol, path = Protocol(steps="5"), tmp_path / "g.png"
    settings = GridConfig(count=4, sampler="ddpm", steps="5", cfg_scale=1.0, cfg_channels="three")
    assert settings.protocol(seed=0) == protocol
    grid = draw_grid(config, params, settings, mesh, path, on_mesh(vae, mesh, "AutoencoderKL"))
    assert grid is not None and grid.shape[-1] == 3
    labels = assign_labels(config, (), 4)
    latents = draw_images(config, params, protocol, labels, 4, mesh, 4)
    model = functional.with_params(*on_mesh(vae, one_device(), "AutoencoderKL"))
    plain = latents / model.config.scaling_factor
    expected = to_uint8(autoencoder_cases.decode(model, plain)).astype(int)
    # 16 pixels enlarged to 32, between gaps of one pixel.
    shown = grid[1:33:2, 1:33:2].astype(int)
    assert expected[0].std() > 5 and np.abs(shown - expected[0]).max() <= 1
    undecoded = draw_grid(config, params, settings, mesh, path)
    assert undecoded is not None and np.any(undecoded != grid)


def test_a_run_on_latents_shows_decoded_grids(
    latent_model: Path, vae: Path, tmp_path: Path
) -> None:
    mesh = one_device()
    config, params = on_mesh(latent_model, mesh)
    settings = GridConfig(every=2, count=2, steps="ddim2")
    run: Any = SimpleNamespace(
        config=TrainConfig(sample=settings),
        student=config,
        mesh=mesh,
        workdir=tmp_path,
        info=SimpleNamespace(vae_folder=ModelFolder(vae)),
        log=print,
    )
    shown: list[np.ndarray] = []
    writer: Any = SimpleNamespace(images=lambda step, name, grid: shown.append(grid))
    clock: Any = SimpleNamespace(paused=contextlib.nullcontext)
    callback = draw_samples(run, writer, clock)
    state: Any = SimpleNamespace(ema=params)
    for step in (1, 2):
        callback(step, state, {}, {})
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0000002.png"]
    decoder = on_mesh(vae, mesh, "AutoencoderKL")
    expected = draw_grid(config, params, settings, mesh, tmp_path / "g.png", decoder)
    assert expected is not None and len(shown) == 1
    np.testing.assert_array_equal(shown[0], expected)


def test_smaller_decode_batches_take_less_memory(latent_model: Path, vae: Path) -> None:
    mesh = one_device()
    (config, params), (vae_config, vae_params) = (
        on_mesh(latent_model, mesh),
        on_mesh(vae, mesh, "AutoencoderKL"),
    )
    number = jax.ShapeDtypeStruct((32,), np.int32)
    keys = jax.eval_shape(lambda index_B: label_keys(0, index_B), number)
    needed = []
    for size in (32, 4):
        draw = make_sampler(config, Protocol(steps="2"), mesh, None, vae_config, size)
        lowered = draw.lower(params, vae_params, keys, number, number)  # type: ignore[attr-defined]
        compiled = lowered.compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < needed[0] / 2


@pytest.mark.parametrize(
    "given,fitting",
    [((64, 512, 8), 64), ((500, 512, 1), 256), ((64, 11, 8), 16), ((10, 27, 1), 9), ((3, 5, 1), 3)],
)
def test_batches_are_even_and_fill_the_devices(given: tuple[int, int, int], fitting: int) -> None:
    assert fitting_batch(*given) == fitting


def test_a_vae_folder_holds_a_vae(latent_model: Path) -> None:
    with pytest.raises(ValueError, match="holds a DiT; a VAE"):
        on_mesh(latent_model, one_device(), "AutoencoderKL")


def test_labels_take_turns_or_are_independent() -> None:
    config = registry.model_config("DiT", **tiny_runs.SIZE)
    assert assign_labels(config, (), 12).tolist() == [*range(10), 0, 1]  # type: ignore[union-attr]
    assert assign_labels(config, (7, 2), 3, "balanced", 5).tolist() == [7, 2, 7]  # type: ignore[union-attr]

    draws = assign_labels(config, (), 4000, "uniform", 5)
    assert draws is not None and draws.dtype == np.int32
    # A function of seed and index: the first of a larger set are those of a smaller one.
    np.testing.assert_array_equal(draws[:100], assign_labels(config, (), 100, "uniform", 5))
    assert np.any(draws[:100] != assign_labels(config, (), 100, "uniform", 6))
    counts = np.bincount(draws, minlength=10)
    assert counts.shape == (10,) and 0 < np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.9)
    # Independent of its neighbour: all pairs of classes occur.
    assert len({*zip(draws[:-1].tolist(), draws[1:].tolist(), strict=True)}) == 100

    unconditional = registry.model_config("DiT", **(tiny_runs.SIZE | {"num_classes": 0}))
    assert assign_labels(unconditional, (), 3) is None


def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images every half a second; the time before the first step, for compiling, does not
    count in the speed of the steps after it."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Progress, "INTERVAL", 1.2)
    said: list[str] = []
    progress = Progress("sampling", 20, "image", said.append, steps=10)
    clock[0] = 100.0
    for step in range(4):
        progress(step)
        clock[0] += 0.5
    assert said[-1] == "  sampling: 8/20 images, 4 images/s, ETA 3.0 s"
    assert len(said) == 1


@pytest.mark.parametrize("limit, by_step", [(1e4, True), (1e12, False)])
def test_images_are_counted_by_step_or_by_batch(
    monkeypatch: pytest.MonkeyPatch, limit: float, by_step: bool
) -> None:
    """Single steps only where they are long; a batch of 8 images in both cases."""
    monkeypatch.setitem(sampler.LONG_STEP_MACS, "cpu", limit)
    counted: list[float] = []
    progress: Any = SimpleNamespace(advance=counted.append)
    config = registry.model_config("DiT", **tiny_runs.SIZE)
    steps = StepProgress(progress, config, Protocol(steps="4"), 8)
    assert (steps.callback is not None) == by_step
    if callback := steps.callback:
        for step in range(4):
            callback(step)
    steps.batch_done()
    assert counted == ([2.0] * 4 if by_step else [8])
