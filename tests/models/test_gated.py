"""Gated linear attention: the golden recurrence and layer, three forms of one function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.attention.gated import (
    INIT_GAIN,
    GatedAttention,
    gated_linear_attention,
    gated_linear_attention_explicit,
    gated_linear_attention_recurrent,
    partition,
)
from lit_jax.models.dig.config import DiGConfig
from support.attention_cases import random_like, sine_input
from support.golden_cases import golden_sources, load_arrays, load_state_dict, relative_error

FORMS: dict[str, Callable[..., Any]] = {
    "chunked": functools.partial(gated_linear_attention, chunk=8, segment=16),
    "explicit": gated_linear_attention_explicit,
    "recurrent": gated_linear_attention_recurrent,
}

# Log-decays: of a fresh layer; nothing is forgotten; all is; a weak one after strong ones, whose
# digits a running sum would lose.
DECAYS = {
    "usual": lambda rng, shape: -0.1 * rng.random(shape),
    "none": lambda rng, shape: np.zeros(shape),
    "total": lambda rng, shape: np.full(shape, -50.0),
    "mixed": lambda rng, shape: rng.choice([-50.0, -0.003, -1e-6, 0.0], shape),
}


def draw(length: int, decay: str = "usual", seed: int = 0) -> tuple[jax.Array, ...]:
    """q, k, v and log-decay of 2 images, 3 heads of 4 key and 5 value channels."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 2, length, 3, 4))
    v, a = rng.normal(size=(2, length, 3, 5)), DECAYS[decay](rng, (2, length, 3, 4))
    return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v, a))


@functools.cache
def compiled(form: str) -> Callable[..., Any]:
    """(output, last state) and the gradients of a loss of both."""

    def loss(inputs: tuple[jax.Array, ...]) -> Any:
        o, state = FORMS[form](*inputs)
        weights = jnp.sin(jnp.arange(o.size)).reshape(o.shape)
        return jnp.sum(o * weights) + jnp.sum(jnp.cos(state)), (o, state)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("decay", DECAYS)
def test_forms_agree(decay: str) -> None:
    """45 tokens: three segments of two chunks of 8, the last of them not full."""
    inputs = draw(45, decay)
    (_, expected), expected_gradients = compiled("recurrent")(inputs)
    for form in ("chunked", "explicit"):
        (_, results), gradients = compiled(form)(inputs)
        for value, reference in zip(results, expected, strict=True):
            assert relative_error(value, reference) < 1e-5, form
        for name, value, reference in zip("qkva", gradients, expected_gradients, strict=True):
            assert np.any(reference) or decay == "total", name
            scale = max(np.abs(reference).max(), 1e-6)
            assert np.abs(value - reference).max() < 1e-5 * scale, (form, name)


def both(*inputs: jax.Array) -> tuple[Any, Any]:
    """Chunked and recurrent, in one program."""
    return FORMS["chunked"](*inputs), FORMS["recurrent"](*inputs)


@pytest.mark.parametrize("length", [1, 17])
def test_any_length(length: int) -> None:
    """One token; full chunks and one token more."""
    results, expected = jax.jit(both)(*draw(length, "usual", seed=length))
    for value, reference in zip(results, expected, strict=True):
        assert relative_error(value, reference) < 1e-5


def test_bfloat16_inputs_are_computed_in_float32() -> None:
    rounded = tuple(x.astype(jnp.bfloat16) for x in draw(17))
    results, _ = jax.jit(both)(*rounded)
    _, expected = jax.jit(both)(*(x.astype(jnp.float32) for x in rounded))
    for value, reference in zip(results, expected, strict=True):
        assert value.dtype == jnp.float32
        assert relative_error(value, reference) < 1e-5


def largest_array(length: int) -> int:
    """Elements of the largest array in the program of the gradient."""
    inputs = tuple(jax.ShapeDtypeStruct((1, length, 2, c), "float32") for c in (8, 8, 8, 8))

    def loss(inputs: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.sum(gated_linear_attention(*inputs, chunk=16, segment=64)[0])

    def sizes(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jax.tree.leaves(tuple(equation.params.values())):
                if isinstance(inner, (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)):
                    yield from sizes(getattr(inner, "jaxpr", inner))

    return max(sizes(jax.make_jaxpr(jax.grad(loss))(inputs).jaxpr))


def test_memory_is_linear_in_the_tokens() -> None:
    """Nothing larger than the inputs: what a segment needs on the way is computed anew."""
    for length in (1024, 4096):
        assert largest_array(length) == length * 2 * 8


@pytest.mark.parametrize(("chunk", "segment"), [(12, 24), (16, 24), (0, 16)])
def test_unfit_chunks(chunk: int, segment: int) -> None:
    with pytest.raises(ValueError, match=f"chunk is {chunk} and segment {segment}; a power of two"):
        gated_linear_attention(*draw(3), chunk=chunk, segment=segment)


def test_segments_fit_the_tokens() -> None:
    """No more than one chunk per segment is beyond the last token."""
    assert partition(16_384) == (64, 512)
    assert partition(576) == (64, 320), "2 segments of 5 chunks, not 2 of 8"
    assert partition(20) == (32, 32)
    assert partition(1) == (1, 1)


# --- golden ---


@functools.cache
def default_form() -> Callable[..., Any]:
    return jax.jit(gated_linear_attention)


@pytest.mark.parametrize("case", ["dig_dwconv_qdir", "dig_dwconv_qdir_skip"])
@pytest.mark.parametrize("folder", golden_sources("dig_dwconv_qdir.npz"))
def test_golden_recurrence(case: str, folder: Path) -> None:
    """Output and last state of the official recurrence: 70 tokens, two chunks of the default."""
    arrays = load_arrays(folder, case)
    inputs = (arrays[f"gla_{name}"].transpose(0, 2, 1, 3) for name in ("q", "k", "v", "gk"))
    o, state = default_form()(*inputs)
    assert relative_error(o.transpose(0, 2, 1, 3), arrays["gla_o"]) < 1e-5
    assert relative_error(state, arrays["gla_final_state"]) < 1e-5


# torch key -> path of a GatedAttention.
KEYS = {
    "q_proj.weight": ("q", "kernel"),
    "k_proj.weight": ("k", "kernel"),
    "v_proj.weight": ("v", "kernel"),
    "g_proj.weight": ("g", "kernel"),
    "gk_proj.0.weight": ("gk", "down", "kernel"),
    "gk_proj.1.weight": ("gk", "up", "kernel"),
    "gk_proj.1.bias": ("gk", "up", "bias"),
    "g_norm_swish_gate.weight": ("g_norm", "scale"),
    "o_proj.weight": ("out", "kernel"),
}


def fresh(config: DiGConfig) -> GatedAttention:
    return GatedAttention(config, rngs=nnx.Rngs(0))


@functools.cache
def layer_fn(config: DiGConfig) -> Callable[..., Any]:
    """`f(params, x) -> (out, out of the heads)`, both [B, N, D]."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: fresh(config)))

    @jax.jit
    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        layer = nnx.merge(graphdef, filled)
        return layer(x, (1, x.shape[1])), layer.out(layer.heads(x, (1, x.shape[1])))

    return apply


@pytest.mark.parametrize("folder", golden_sources("dig_dwconv_qdir.npz"))
def test_golden_layer(folder: Path) -> None:
    case = "dig_dwconv_qdir"
    arrays, weights = load_arrays(folder, case), load_state_dict(folder, case)
    params: dict[Any, Any] = {}
    for key, path in KEYS.items():
        *above, leaf = path
        group = functools.reduce(lambda tree, name: tree.setdefault(name, {}), above, params)
        group[leaf] = weights[f"blocks.0.attn.{key}"].T
    out, of_heads = layer_fn(DiGConfig(hidden_size=48, num_heads=3))(params, arrays["gla_layer_in"])
    assert relative_error(out, arrays["gla_layer0_out"]) < 1e-5
    np.testing.assert_array_equal(of_heads, out)


# --- the module ---


def test_initial_values() -> None:
    """Xavier with a gain of 2^-2.5 for all projections; a decay of 0.957 per token."""

    def initial() -> Any:
        layer = fresh(DiGConfig(hidden_size=64, num_heads=2))
        return nnx.to_pure_dict(nnx.state(layer)), layer.log_decay(jnp.zeros((1, 1, 64)))

    params, a_BxNxK = jax.jit(initial)()
    for leaves, fan_in, fan_out in (
        (params["q"], 64, 32),
        (params["k"], 64, 32),
        (params["v"], 64, 64),
        (params["g"], 64, 64),
        (params["out"], 64, 64),
        (params["gk"]["down"], 64, 16),
        (params["gk"]["up"], 16, 32),
    ):
        bound = INIT_GAIN * np.sqrt(6 / (fan_in + fan_out))
        assert leaves["kernel"].shape == (fan_in, fan_out)
        assert 0.97 * bound < np.abs(leaves["kernel"]).max() <= bound
    biases = [p for p, _ in jax.tree.leaves_with_path(params) if "bias" in jax.tree_util.keystr(p)]
    assert len(biases) == 1 and not np.any(params["gk"]["up"]["bias"])
    np.testing.assert_array_equal(params["g_norm"]["scale"], np.ones(32))
    np.testing.assert_allclose(a_BxNxK, np.log(0.5) / 16, rtol=1e-6)


def test_bfloat16_layer() -> None:
    x = jnp.asarray(sine_input((2, 40, 48), 0.3))
    config = DiGConfig(hidden_size=48, num_heads=3)
    params = random_like(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: fresh(config)))))
    expected, _ = layer_fn(config)(params, x)
    out, _ = layer_fn(dataclasses.replace(config, dtype="bfloat16"))(params, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert 1e-5 < relative_error(out.astype(jnp.float32), expected) < 0.05
