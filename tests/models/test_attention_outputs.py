"""The attention outputs that a denoiser returns for distillation: of every layer, before their
projection, whatever the mixer and however the network is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.attention import MIXERS
from lit_jax.models.functional import Params, abstract_params, apply_fn, with_params
from lit_jax.models.layers import layer_norm, modulate
from lit_jax.models.pixart.config import KVCompressConfig
from lit_jax.models.registry import DenoiserConfig
from support import dit_cases, pixart_cases
from support.attention_cases import random_like
from support.golden_cases import relative_error

KV = KVCompressConfig("conv", 2, (1,))


def outputs(config: DenoiserConfig, params: Params) -> tuple[np.ndarray, np.ndarray]:
    inputs = batch(config)
    out, heads = pixart_cases.quick_jit(apply_fn(config, "with_attention"))(params, *inputs)
    return np.asarray(out), np.asarray(heads)


def batch(config: DenoiserConfig) -> Any:
    labelled = config.family != "PixArt"
    return dit_cases.batch(config) if labelled else pixart_cases.batch(config)


def params_of(config: DenoiserConfig) -> Params:
    return random_like(abstract_params(config))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_is_its_heads_and_their_projection(mixer: str) -> None:
    config = dit_cases.tiny(mixer=mixer, depth=1)
    model = with_params(config, params_of(config))
    attention = jax.tree.map(lambda leaf: leaf[0], model.blocks).attn
    x_BxNxD = jnp.asarray(np.sin(np.arange(2 * 4 * 16)).reshape(2, 4, 16), jnp.float32)
    heads = attention.heads(x_BxNxD, (2, 2))
    assert heads.shape == (2, 4, 16)
    np.testing.assert_array_equal(attention(x_BxNxD, (2, 2)), attention.out(heads))
    assert relative_error(attention(x_BxNxD, (2, 2)), heads) > 0.1


CASES: dict[str, DenoiserConfig] = {
    "DiT": dit_cases.tiny("DiT", depth=3),
    "LiT": dit_cases.tiny("LiT", depth=3),
    "PixArt, compressed": pixart_cases.tiny(kv_compress_config=KV),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_every_layer(case: str) -> None:
    """Each is what the block's attention returns for what the layers before it made."""
    config = CASES[case]
    params, inputs = params_of(config), batch(config)
    out, heads = outputs(config, params)
    model = with_params(config, params)
    plain, kept = pixart_cases.quick_jit(apply_fn(config, "with_activations"))(params, *inputs)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
    tokens = [kept["embedding"], *kept["blocks"]]
    assert heads.shape == (3, *tokens[0].shape)
    for layer in range(3):
        block = jax.tree.map(lambda leaf, i=layer: leaf[i], model.blocks)
        if config.family == "PixArt":
            time, _ = model.embed_conditions(*inputs[1:])
            rows = block.scale_shift_table[...] + model.t_block(jax.nn.silu(time)).reshape(2, 6, -1)
            shift, scale = rows[:, 0], rows[:, 1]
        else:
            c_BxD = model.t_embedder(inputs[1]) + model.y_embedder(inputs[2])
            shift, scale = jnp.split(block.adaln(jax.nn.silu(c_BxD)), 6, axis=-1)[:2]
        given = (modulate(layer_norm(tokens[layer]), shift, scale), config.grid)
        if case == "PixArt, compressed" and layer == 1:
            given += (jax.tree.map(lambda leaf: leaf[0], model.kv_compress),)
        assert relative_error(heads[layer], block.attn.heads(*given)) < 1e-5, layer


@pytest.mark.parametrize("case", ["LiT", "PixArt, compressed"])
def test_how_it_is_computed_changes_neither_them_nor_their_gradient(case: str) -> None:
    plain = CASES[case]
    params = params_of(plain)

    def gradient_of(config: DenoiserConfig) -> Any:
        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            _, heads = apply_fn(config, "with_attention")(params, *batch(config))
            return jnp.sum(jnp.square(heads)), heads

        return pixart_cases.quick_jit(jax.grad(loss, has_aux=True))(params)

    (gradient, heads), (expected, wanted) = map(
        gradient_of, (dataclasses.replace(plain, scan_unroll=2, remat="full"), plain)
    )
    assert relative_error(heads, wanted) < 1e-5
    for name in ("q", "v"):
        own, other = (tree["blocks"]["attn"][name]["kernel"] for tree in (gradient, expected))
        assert np.abs(other).max() > 0.1 and relative_error(own, other) < 1e-5
    # What comes after the last attention has no part in it.
    assert not np.any(gradient["final_layer"]["linear"]["kernel"])
    assert not np.any(gradient["blocks"]["attn"]["out"]["kernel"][-1])
