"""Samples drawn by devices that share an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.sample.checks import check_rows
from lit_jax.config.protocol import Protocol
from lit_jax.config.sample import SampleConfig
from lit_jax.models import registry
from lit_jax.models.attention import MIXERS, mixer_class
from support import tiny_runs
from support.sampling import sample

GUIDED = Protocol(steps="4", cfg_scale=2.0, cfg_channels="all", seed=3)
LATENTS: dict[str, Any] = {"input_size": (32, 8), "patch_size": 2, "in_channels": 4}


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny LiT on 16 x 4 tokens."""
    path = tmp_path_factory.mktemp("models") / "lit"
    return tiny_runs.save_model(path, "LiT", kernel_size=3, **LATENTS)


def latents(out: Path) -> np.ndarray:
    with np.load(out / "latents.npz") as arrays:
        kept: np.ndarray = arrays["arr_0"]
    return kept


def test_images_do_not_depend_on_how_many_devices_share_one(
    lit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meshes: list[dict[str, int]] = []
    split = sharding.split_rows

    def seen(network: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
        meshes.append(dict(mesh.shape))
        return split(network, mesh)

    monkeypatch.setattr(sharding, "split_rows", seen)
    said: list[str] = []
    for sequence in (1, 4):
        out = tmp_path / str(sequence)
        given: dict[str, Any] = {"save_latents": True, "log": said.append, "sequence": sequence}
        sample(lit, out, 3, GUIDED, **given)
    # Two groups of four devices draw two images each; one of the four is dropped.
    assert meshes == [{"data": 2, "fsdp": 1, "sequence": 4}]
    line = "4 devices share an image; in each layer they exchange sums over all tokens, and the"
    assert [text.startswith(line) for text in said].count(True) == 1
    alone, shared = latents(tmp_path / "1"), latents(tmp_path / "4")
    assert alone.shape == (3, 32, 8, 4) and np.abs(alone).max() > 1
    np.testing.assert_allclose(shared, alone, rtol=1e-4, atol=1e-4)

    # Part of neither the request nor the images: the finished output stands.
    sample(lit, tmp_path / "4", 3, GUIDED, save_latents=True, log=said.append)
    assert said[-1].startswith("nothing to do")


REFUSALS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "none": ("LiT", {}, 0, "sequence is 0; it must be an integer of at least 1"),
    "rows": ("LiT", {}, 3, "sequence 3 does not divide the 16 rows of tokens of m"),
    "strips": ("CLEAR", {"window_size": 2}, 4, "'window' needs a multiple of 8: choose a smaller"),
    "patches": (
        "CLEAR",
        {"window_size": 2, "down_factor": 16, "input_size": (32, 32)},
        2,
        "needs a multiple of 16",
    ),
    "scan": ("DiG", {}, 2, "the mixer 'gated' of m scans its tokens one after the other"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_rows_that_devices_cannot_share(case: str) -> None:
    family, fields, sequence, named = REFUSALS[case]
    network: Any = registry.model_config(family, **(tiny_runs.SIZE | LATENTS | fields))
    with pytest.raises(ValueError, match=named):
        check_rows(SampleConfig("m", "out", 1, sequence=sequence), network)


@pytest.mark.parametrize(
    "sequence, named", [(3, "does not divide the 16 rows"), (16, "does not divide 8 devices")]
)
def test_what_cannot_be_shared_writes_nothing(
    sequence: int, named: str, lit: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        sample(lit, tmp_path / "s", 2, GUIDED, save_latents=True, sequence=sequence)
    assert not (tmp_path / "s").exists()


def test_every_mixer_has_its_line() -> None:
    """Each mixer documents the data that devices exchange, or that they cannot share an image."""
    assert all(mixer_class(name).EXCHANGED for name in MIXERS)
    assert mixer_class("gated").EXCHANGED is None
