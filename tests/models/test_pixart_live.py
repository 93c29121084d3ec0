"""Against diffusers' PixArtTransformer2DModel: a network, weights and inputs of its own per run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.models.conditions import TextCondition
from lit_jax.models.pixart.config import PixArtConfig
from support.golden_cases import relative_error
from support.live_parity import live_seed, randomise_, state_of
from support.pixart_cases import forward

# Frequencies of the time embedding that differ in their last bit move an angle of 999 by 6e-5, and
# the output of a narrow network by 2e-6 as a rule, by 1.4e-5 at most in 120 runs.
TOLERANCE = 3e-5

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def random_network(rng: np.random.Generator, micro: bool) -> Any:
    """A network of random depth, width, patch, size and position scale."""
    heads = int(rng.integers(1, 4))
    head_dim = 12 * int(rng.integers(1, 3))
    channels = int(rng.integers(1, 5))
    patch = int(rng.choice([1, 2]))
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        cross_attention_dim=heads * head_dim,
        in_channels=channels,
        out_channels=channels * int(rng.integers(1, 3)),
        num_layers=int(rng.integers(1, 4)),
        sample_size=patch * int(rng.integers(2, 6)),
        patch_size=patch,
        caption_channels=int(rng.integers(4, 20)),
        interpolation_scale=float(rng.choice([0.5, 1.0, 1.5, 2.0])),
        use_additional_conditions=micro,
    ).eval()


def random_mask(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Any pattern with at least one token per caption."""
    mask = rng.integers(0, 2, shape)
    mask[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = 1
    return mask


@pytest.mark.parametrize("micro", [False, True])
def test_equals_diffusers(micro: bool) -> None:
    seed = live_seed()
    rng = np.random.default_rng(seed)
    network = random_network(rng, micro)
    randomise_(network, seed)
    hub = dict(network.config)
    state = state_of(network)
    config = detect_config(state, hub=hub)
    assert isinstance(config, PixArtConfig)
    params, _ = import_params(state, config)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    B, L = 3, int(rng.integers(1, 9))
    H, W = (config.patch_size * int(n) for n in rng.integers(2, 7, 2))
    x, tokens = normal(B, config.in_channels, H, W), normal(B, L, config.caption_channels)
    t = rng.integers(0, 1000, B)
    if rng.random() < 0.5:
        t = (t * rng.random(B)).astype(np.float32)
    mask = None if rng.random() < 0.25 else random_mask(rng, (B, L))
    sizes: dict[str, np.ndarray] = {}
    added = {"resolution": None, "aspect_ratio": None}
    if micro:
        sizes = {"img_hw": rng.integers(256, 2048, (B, 2)).astype(np.float32)}
        sizes["aspect_ratio"] = sizes["img_hw"][:, :1] / sizes["img_hw"][:, 1:]
        added = {
            "resolution": torch.from_numpy(sizes["img_hw"]),
            "aspect_ratio": torch.from_numpy(sizes["aspect_ratio"]),
        }
    with torch.no_grad():
        expected = network(
            torch.from_numpy(x),
            encoder_hidden_states=torch.from_numpy(tokens),
            timestep=torch.from_numpy(t),
            encoder_attention_mask=None if mask is None else torch.from_numpy(mask),
            added_cond_kwargs=added,
        ).sample.numpy()
    cond = TextCondition(tokens, mask, **sizes)
    out = forward(config)(params, np.moveaxis(x, 1, -1), t, cond)
    error = relative_error(np.moveaxis(np.asarray(out), -1, 1), expected)
    assert error < TOLERANCE, f"LIT_JAX_TEST_SEED={seed}: {error:.2e} with {hub}"

    # And back: the same keys and numbers, which diffusers takes in strictly.
    exported = export_params(params, config, "diffusers")
    network.load_state_dict({key: torch.from_numpy(a) for key, a in exported.items()}, strict=True)
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
