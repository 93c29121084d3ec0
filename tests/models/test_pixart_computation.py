"""Ways of computing a PixArt: they do not change what is computed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.dit.model import REMAT_POLICIES
from lit_jax.models.functional import Params, abstract_params, apply_fn, with_params
from lit_jax.models.layers import patchify, unpatchify
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.pixart.model import PixArt, position_table
from support.golden_cases import relative_error
from support.pixart_cases import batch, forward, quick_jit, random_params, tiny


@functools.cache
def loss_and_gradient(config: PixArtConfig) -> Callable[..., Any]:
    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        out = apply_fn(config)(params, *batch(config))
        return jnp.sum(jnp.square(out)), out

    return quick_jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    "fields",
    [{"scan_unroll": 2}, *({"remat": name} for name in REMAT_POLICIES if name != "none")],
    ids=str,
)
def test_unrolling_and_remat_keep_output_and_gradient(fields: dict[str, Any]) -> None:
    plain = tiny(model_max_length=None)
    params = random_params(plain)
    gradient, out = loss_and_gradient(dataclasses.replace(plain, **fields))(params)
    expected_gradient, expected = loss_and_gradient(plain)(params)
    assert relative_error(out, expected) < 2e-6
    ours, reference = (jax.tree.leaves_with_path(g) for g in (gradient, expected_gradient))
    for (path, value), (_, other) in zip(ours, reference, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of all keys shifts the logits of a query alike: its gradient is rounding.
        if name in ("blocks/attn/k/bias", "blocks/cross_attn/k/bias"):
            continue
        assert np.any(other), f"{name}: a parameter without influence"
        assert relative_error(value, other) < 1e-5, name


@pytest.mark.parametrize(("remat", "count"), [("none", 0), ("full", 2), ("dots", 2)])
def test_remat_reaches_every_run_of_layers(remat: str, count: int) -> None:
    config = tiny(remat=remat, kv_compress_config=KVCompressConfig("ave", 2, (1, 2)))
    program = str(jax.make_jaxpr(apply_fn(config))(abstract_params(config), *batch(config)))
    assert program.count("remat2[") + program.count("checkpoint[") == count
    assert program.count("scan[") == 2


def test_a_model_without_compression_is_one_scan_over_unsliced_parameters() -> None:
    config = tiny()
    program = jax.make_jaxpr(apply_fn(config))(abstract_params(config), *batch(config))
    assert str(program).count("scan[") == 1
    scan = next(e for e in program.eqns if e.primitive.name == "scan")
    inputs = set(map(id, program.jaxpr.invars))
    stacked = [v for v in scan.invars if getattr(v.aval, "shape", ())[:1] == (3,)]
    assert stacked and all(id(v) in inputs for v in stacked)


@pytest.mark.parametrize(
    "fields",
    [{}, {"mixer": "linear"}, {"kv_compress_config": KVCompressConfig("conv", 2, (1, 2))}],
    ids=["softmax", "linear", "compressed"],
)
def test_bfloat16_model_returns_float32(fields: dict[str, Any]) -> None:
    config = tiny(**fields)
    params = random_params(config)
    low = dataclasses.replace(config, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(low))} == {jnp.dtype("f4")}
    out, expected = (forward(c)(params, *batch(c)) for c in (low, config))
    assert out.dtype == jnp.float32
    assert 1e-5 < relative_error(out, expected) < 0.05


def test_with_activations() -> None:
    """The same output, the embedding, and per block what the final layer would read after it; also
    where the blocks are run in several scans."""
    config = tiny(kv_compress_config=KVCompressConfig("conv", 2, (1,)))
    params = random_params(config)
    x, t, cond = batch(config)
    call = quick_jit(lambda p: with_params(config, p).with_activations(x, t, cond))
    out, kept = call(params)
    assert relative_error(out, forward(config)(params, x, t, cond)) < 1e-6
    assert kept["blocks"].shape == (3, 2, 16, 24)
    model: PixArt = with_params(config, params)
    embedding = model.x_embedder(patchify(x, 2)) + position_table(config)
    assert relative_error(kept["embedding"], embedding) < 1e-6
    time, _ = model.embed_conditions(t, cond)
    for depth in (1, 2):
        tokens = model.final_layer(kept["blocks"][depth - 1], time)
        shallow_config = tiny(
            depth=depth, kv_compress_config=KVCompressConfig("conv", 2, (1,) if depth > 1 else ())
        )
        first = dict(params, blocks=jax.tree.map(lambda leaf, n=depth: leaf[:n], params["blocks"]))
        if depth == 1:
            del first["kv_compress"]
        shallow = forward(shallow_config)(first, x, t, cond)
        assert relative_error(unpatchify(tokens, (4, 4), 2), shallow) < 1e-5
