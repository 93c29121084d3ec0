"""The T5 encoder: the golden numbers, live parity with transformers, positions, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import import_params
from lit_jax.models.functional import (
    Params,
    abstract_params,
    apply_fn,
    count_params,
    init_params,
    with_params,
)
from lit_jax.models.registry import model_config, sizes
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.model import T5Encoder, relative_position_bucket
from support.attention_cases import random_like
from support.golden_cases import golden_sources, load_arrays, load_meta, relative_error
from support.live_parity import live_seed, randomise_, state_of

TINY = T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3)
SOURCES = golden_sources("t5.npz")
FORWARD = 1e-5


def golden_model(folder: Path, **fields: Any) -> tuple[T5Config, Params]:
    config = T5Config(**load_meta(folder, "t5")["config"], **fields)
    return config, import_params(load_file(folder / "t5" / "model.safetensors"), config)[0]


def tiny_model() -> T5Encoder:
    return with_params(TINY, random_like(abstract_params(TINY)))


# --- the official network ---


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("case", ["short", "long"])
@pytest.mark.parametrize("masked", [True, False])
def test_golden_output(folder: Path, case: str, masked: bool) -> None:
    """At all positions, the padding included; `long` has distances beyond the last bucket."""
    config, params = golden_model(folder)
    arrays = load_arrays(folder, "t5")
    mask = arrays[f"{case}/attention_mask"] if masked else None
    out = jax.jit(apply_fn(config))(params, arrays[f"{case}/input_ids"], mask)
    assert out.dtype == jnp.float32
    expected = arrays[f"{case}/out_{'mask' if masked else 'nomask'}"]
    assert relative_error(out, expected) < FORWARD


@pytest.mark.parametrize("folder", SOURCES)
def test_golden_hidden_states(folder: Path) -> None:
    config, params = golden_model(folder)
    arrays = load_arrays(folder, "t5")
    ids, mask = arrays["short/input_ids"], arrays["short/attention_mask"]
    out, states = with_params(config, params).with_hidden_states(ids, mask)
    assert relative_error(out, arrays["short/out_mask"]) < FORWARD
    assert len(states) == config.num_layers + 1
    for number, state in enumerate(states):
        assert relative_error(state, arrays[f"short/hidden_states{number}_mask"]) < FORWARD


def official_model(rng: np.random.Generator, seed: int) -> tuple[Any, T5Config]:
    """A small encoder of transformers with random sizes and weights, and its configuration."""
    transformers = pytest.importorskip("transformers")
    buckets, distance = [(32, 128), (16, 64), (8, 20)][rng.integers(3)]
    config = T5Config(
        vocab_size=int(rng.integers(20, 50)),
        d_model=int(rng.choice([12, 20])),
        d_kv=int(rng.choice([4, 6])),
        d_ff=int(rng.choice([16, 28])),
        num_layers=int(rng.integers(1, 4)),
        num_heads=int(rng.integers(2, 4)),
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        # Large enough to be seen in the output.
        layer_norm_epsilon=float(rng.choice([1e-6, 1e-2])),
    )
    ours = ("family", "weights", "dtype")
    names = {name: getattr(config, name) for name in vars(config) if name not in ours}
    official = transformers.T5EncoderModel(
        transformers.T5Config(**names, feed_forward_proj="gated-gelu")
    ).eval()
    randomise_(official, seed)
    return official, config


def live_masks(rng: np.random.Generator, length: int) -> np.ndarray:
    """All tokens, a prefix, a suffix, any tokens, none: [5, length]."""
    position, cut = np.arange(length), rng.integers(1, length)
    rows = [position >= 0, position < cut, position >= cut, rng.random(length) < 0.5, position < 0]
    return np.stack(rows).astype(np.int64)


def test_parity_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    seed = live_seed()
    rng = np.random.default_rng(seed)
    official, config = official_model(rng, seed)
    params = import_params(state_of(official), config)[0]
    encode = jax.jit(lambda p, ids, mask: with_params(config, p).with_hidden_states(ids, mask))
    for length in (int(rng.integers(2, 40)), int(rng.integers(200, 301))):
        ids = rng.integers(0, config.vocab_size, (5, length))
        for mask in (live_masks(rng, length), None):
            with torch.no_grad():
                expected = official(
                    input_ids=torch.from_numpy(ids),
                    attention_mask=None if mask is None else torch.from_numpy(mask),
                    output_hidden_states=True,
                )
            out, states = encode(params, ids, mask)
            context = f"LIT_JAX_TEST_SEED={seed} {config} length {length}"
            wanted = [expected.last_hidden_state, *expected.hidden_states]
            for found, want in zip([out, *states], wanted, strict=True):
                assert relative_error(found, want.numpy()) < 2e-5, context


# --- positions ---


def test_buckets_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-600, 601)
    for buckets, farthest in ((32, 128), (32, 256), (16, 64), (64, 512), (8, 20), (4, 2)):
        expected = T5Attention._relative_position_bucket(
            torch.from_numpy(distances), True, buckets, farthest
        )
        found = relative_position_bucket(distances, buckets, farthest)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected.numpy())


def test_buckets_by_hand() -> None:
    """8 buckets up to distance 8: per direction 0, 1, and steps by the square root of 8 / 2."""
    distances = np.array([[0, -1, -2, -3, -4, -7, -8, -500], [0, 1, 2, 3, 4, 7, 8, 500]])
    expected = [[0, 1, 2, 2, 3, 3, 3, 3], [0, 5, 6, 6, 7, 7, 7, 7]]
    np.testing.assert_array_equal(relative_position_bucket(distances, 8, 8), expected)


def test_position_bias() -> None:
    """Entry (head, i, j) is the row of the distance j - i, one by one."""
    encoder = tiny_model()
    table = np.asarray(encoder.relative_bias.embedding[...])
    bias = np.asarray(encoder.relative_bias(7))
    assert bias.shape == (1, 3, 7, 7)
    for i in range(7):
        for j in range(7):
            row = table[relative_position_bucket(np.array(j - i), 32, 128)]
            np.testing.assert_array_equal(bias[0, :, i, j], row)


def test_padding_does_not_reach_tokens() -> None:
    encode = jax.jit(apply_fn(TINY))
    params = random_like(abstract_params(TINY))
    ids, mask = np.array([[5, 6, 7, 8]]), np.array([[1, 1, 1, 0]])
    out, other = encode(params, ids, mask), encode(params, np.array([[5, 6, 7, 9]]), mask)
    np.testing.assert_array_equal(out[:, :3], other[:, :3])
    assert relative_error(out[:, :3], encode(params, ids[:, :3], None)) < 1e-5
    assert relative_error(out[:, 3], other[:, 3]) > 1e-2
    np.testing.assert_array_equal(out, encode(params, ids, mask.astype(bool)))


# --- initial values and sizes ---


def test_initial_values() -> None:
    """Standard deviations of the T5 code; the missing 1 / sqrt(d) is in the queries."""
    config = T5Config(vocab_size=300, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=2)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    blocks = params["blocks"]
    expected = {"q": (64 * 16) ** -0.5, "k": 64**-0.5, "v": 64**-0.5, "out": 32**-0.5}
    deviations = [(blocks["attn"][name]["kernel"], std) for name, std in expected.items()]
    expected = {"wi_0": 64**-0.5, "wi_1": 64**-0.5, "wo": 96**-0.5}
    deviations += [(blocks["mlp"][name]["kernel"], std) for name, std in expected.items()]
    deviations += [(params["shared"]["embedding"], 1.0)]
    for leaf, std in deviations:
        assert np.std(leaf) == pytest.approx(std, rel=0.05)
    assert np.std(params["relative_bias"]["embedding"]) == pytest.approx(1 / 8, rel=0.3)
    norms = (blocks["attn_norm"], blocks["mlp_norm"], params["final_norm"])
    assert all(np.all(norm["scale"] == 1) for norm in norms)
    assert not np.array_equal(*blocks["attn"]["q"]["kernel"]), "blocks must not be copies"


# Of T5EncoderModel of transformers with these sizes.
PARAMETERS = {
    "T5-v1.1-small": 35332800,
    "T5-v1.1-base": 109628544,
    "T5-v1.1-large": 341231104,
    "T5-v1.1-XL": 1223527424,
    "T5-v1.1-XXL": 4762310656,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_sizes(name: str) -> None:
    assert {row for row in sizes() if row.startswith("T5")} == set(PARAMETERS)
    assert count_params(abstract_params(model_config(name))) == PARAMETERS[name]


# --- bad input ---


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 30]], None, r"token id 30 is not in 0\.\.29.*tokenizer"),
        ([[1, -100]], None, r"token id -100 is not in 0\.\.29"),
        ([1, 2], None, r"token_ids of shape \(2,\) .*\[batch, tokens\]"),
        ([[]], None, r"token_ids of shape \(1, 0\)"),
        ([[1.0, 2.0]], None, r"type float32; they must be integers"),
        ([[1, 2]], [1, 1], r"mask of shape \(2,\) for token_ids of shape \(1, 2\)"),
        ([[1, 2]], [[1, 1, 0]], r"mask of shape \(1, 3\)"),
        ([[1, 2]], [[0.0, -10000.0]], r"mask holds -10000\.0.*1 for tokens and 0 for padding"),
    ],
)
def test_bad_input(ids: Any, mask: Any, message: str) -> None:
    encoder = tiny_model()
    mask = None if mask is None else jnp.asarray(mask)
    with pytest.raises(ValueError, match=message):
        encoder(jnp.asarray(ids), mask)


def test_unknown_ids_inside_jit_are_seen() -> None:
    out = jax.jit(apply_fn(TINY))(
        random_like(abstract_params(TINY)), np.array([[1, 30], [1, 2]]), None
    )
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'.*bfloat16"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"weights": "int4"}, "unknown kind of weights 'int4'.*float, int8"),
        ({"relative_attention_num_buckets": 2}, "num_buckets is 2; it must be at least 4"),
        ({"relative_attention_max_distance": 8}, "max_distance is 8; it must be larger than the 8"),
    ],
)
def test_bad_config(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        abstract_params(T5Config(**fields))
