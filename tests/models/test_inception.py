"""The network of the FID: golden features, preprocessing, what it refuses."""

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

import lit_jax
from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import (
    Params,
    abstract_params,
    count_params,
    create_model,
    init_params,
    with_params,
)
from lit_jax.models.inception.config import PREPROCESSINGS, InceptionConfig
from lit_jax.models.inception.model import FIDInception, InceptionFeatures
from support.golden_cases import golden_sources, load_arrays, nhwc, relative_error
from support.inception_cases import TINY, golden_weights, tiny_weights

TOLERANCE = 2e-5
# On values in -1..1: the official code rounds positions to float32, up to 2e-5 of a pixel.
POSITION = 1e-5

CASES = [
    pytest.param(source.values[0], size, preprocessing, id=f"{size}-{preprocessing}-{source.id}")
    for source in golden_sources("inception.npz")
    for size in sorted(
        k.split("/")[0] for k in load_arrays(source.values[0], "inception") if "u8" in k
    )
    for preprocessing in PREPROCESSINGS
]


@functools.cache
def golden_params(folder: Path) -> Params:
    return import_params(golden_weights(folder), InceptionConfig())[0]


@functools.cache
def compiled_features(config: InceptionConfig) -> Callable[..., Any]:
    return jax.jit(lambda params, x: with_params(config, params).features(x))


@functools.cache
def tiny_params() -> Params:
    return import_params(tiny_weights(), TINY)[0]


@functools.cache
def tiny_model(config: InceptionConfig = TINY) -> FIDInception:
    model: FIDInception = with_params(config, tiny_params())
    return model


@functools.cache
def compiled_model() -> Callable[[Any], InceptionFeatures]:
    return jax.jit(lambda images: tiny_model()(images))


def pictures(count: int = 3, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- golden numbers ---


@pytest.mark.parametrize(("folder", "size", "preprocessing"), CASES)
def test_preprocessing_equals_the_official_one(folder: Path, size: str, preprocessing: str) -> None:
    arrays = load_arrays(folder, "inception")
    config = dataclasses.replace(TINY, preprocessing=preprocessing)
    x = np.asarray(tiny_model(config).preprocess(arrays[f"{size}/images_u8_nhwc"]))
    assert x.shape[1:] == (299, 299, 3) and x.dtype == np.float32
    # The golden pictures are resized but not yet scaled, every 13th pixel.
    name, expected = next(
        (key, nhwc(value))
        for key, value in arrays.items()
        if key.startswith(f"{size}/{preprocessing}/resized")
    )
    expected = 2 * expected - 1 if "resized_0_1_" in name else (expected - 128) / 128
    np.testing.assert_allclose(x[:, ::13, ::13], expected, rtol=0, atol=POSITION)


@pytest.mark.parametrize(("folder", "size", "preprocessing"), CASES)
def test_features_equal_the_official_ones(folder: Path, size: str, preprocessing: str) -> None:
    arrays = load_arrays(folder, "inception")
    images = arrays[f"{size}/images_u8_nhwc"]
    x = tiny_model(dataclasses.replace(TINY, preprocessing=preprocessing)).preprocess(images)
    # One compiled program for all sizes: three images, the last one repeated if there are fewer.
    x = jnp.concatenate([x, *[x[-1:]] * (3 - len(x))])
    features, means = compiled_features(InceptionConfig())(golden_params(folder), x)
    ours = {
        "64": means["pool_1"],
        "192": means["pool_2"],
        "768": means["Mixed_6e"],
        "2048": features.pool3,
        "logits": features.logits,
        "logits_unbiased": features.logits_unbiased,
        "spatial_mixed6d_branch1x1_first7": features.spatial.transpose(0, 3, 1, 2),
    }
    for name, value in ours.items():
        error = relative_error(value[: len(images)], arrays[f"{size}/{preprocessing}/{name}"])
        assert error < TOLERANCE, (name, error)


# --- the whole call ---


def test_one_call_gives_all_features() -> None:
    images, model = pictures(), tiny_model()
    features = compiled_model()(images)
    assert isinstance(features, InceptionFeatures)
    assert {name: value.shape for name, value in features._asdict().items()} == {
        "pool3": (3, 128),
        "logits": (3, 10),
        "logits_unbiased": (3, 10),
        "spatial": (3, 17, 17, 7),
    }
    assert all(value.dtype == jnp.float32 for value in features)
    expected, means = compiled_features(TINY)(tiny_params(), model.preprocess(images))
    for ours, reference in zip(features, expected, strict=True):
        assert relative_error(ours, reference) < 1e-5
    np.testing.assert_array_equal(expected.pool3, means["Mixed_7c"])
    bias = tiny_params()["fc"]["bias"]
    np.testing.assert_allclose(features.logits, features.logits_unbiased + bias, atol=1e-6)
    assert np.abs(bias).min() > 0


def test_number_types_of_images_do_not_matter() -> None:
    images = pictures()
    expected = tiny_model().preprocess(images)
    for kind in (np.float32, np.int32, np.float16):
        np.testing.assert_array_equal(tiny_model().preprocess(images.astype(kind)), expected)


def test_features_do_not_depend_on_the_batch() -> None:
    images, others = pictures(), pictures(seed=1)
    mixed = np.stack([others[0], images[0], others[1]])
    for first, second in zip(compiled_model()(images), compiled_model()(mixed), strict=True):
        assert relative_error(second[1], first[0]) < 1e-5
        assert relative_error(second[0], first[0]) > 1e-3


def test_images_may_be_larger_than_the_input_of_the_network() -> None:
    """Two pixels are read, without a filter: 598 px to 299 px takes every other one in tf1."""
    images = pictures(1, 598, 897)
    x = tiny_model().preprocess(images)
    np.testing.assert_allclose(x, (images[:, ::2, ::3] - 128.0) / 128, atol=1e-6)


def test_model_folder_keeps_the_preprocessing(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, preprocessing="pytorch_fid")
    save_model_dir(tmp_path / "model", config, tiny_params(), {})
    images, loaded = pictures(), lit_jax.load_model(tmp_path / "model")
    assert loaded.config == config
    expected = tiny_model(config).preprocess(images)
    np.testing.assert_array_equal(loaded.preprocess(images), expected)
    assert np.abs(expected - tiny_model().preprocess(images)).max() > 0.01


# --- parameters ---


def test_parameter_count() -> None:
    """The file of pytorch-fid without its counters: 23 885 392 numbers, statistics included."""
    params = abstract_params(InceptionConfig())
    assert count_params(params) == 23_885_392
    assert params["fc"]["kernel"].shape == (2048, 1008)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_width_divisor_divides_every_width() -> None:
    whole, tiny = abstract_params(InceptionConfig()), abstract_params(TINY)
    whole, tiny = ({**p, "fc": {"kernel": p["fc"]["kernel"]}} for p in (whole, tiny))
    for path, leaf in jax.tree.leaves_with_path(tiny):
        real = functools.reduce(lambda tree, key: tree[key.key], path, whole)
        if path[0].key != "fc":
            assert real.shape[-1] == 16 * leaf.shape[-1], path
    assert tiny["fc"]["kernel"].shape == (128, 10)


def test_fresh_model_has_live_features() -> None:
    """Initial statistics are those of a standard normal, and filters keep the scale."""
    params = init_params(TINY, jax.random.key(0))
    features, _ = compiled_features(TINY)(params, tiny_model().preprocess(pictures()))
    assert 0.01 < np.std(features.pool3) < 100


# --- what is refused ---


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), r"shape \(2, 3, 32, 32\).*height, width, 3"),
        (np.zeros((2, 32, 32, 1), np.uint8), r"shape \(2, 32, 32, 1\).*repeat"),
        (np.zeros((32, 32, 3), np.uint8), r"shape \(32, 32, 3\)"),
        (np.zeros((1, 0, 32, 3), np.uint8), r"shape \(1, 0, 32, 3\)"),
        (np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3), "from -1 to 1; .*0..255"),
        (np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3), "from 0 to 1; .*uint8"),
        (np.full((1, 4, 4, 3), 300, np.int32), "from 300 to 300"),
        (np.full((1, 4, 4, 3), np.nan, np.float32), "from nan to nan"),
    ],
    ids=["channels first", "grey", "no batch", "empty", "-1..1", "0..1", "above 255", "nan"],
)
def test_refused_images(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(images)


@pytest.mark.parametrize("black", [np.zeros((1, 4, 4, 3), np.float32), pictures() // 255])
def test_dark_images_are_images(black: np.ndarray) -> None:
    """Black floats and uint8 pictures of grey levels 0 and 1 are not mistaken for 0..1 floats."""
    assert np.all(np.asarray(tiny_model().preprocess(black)) < -0.99)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'.*use dtype='float32'"),
        ({"preprocessing": "tf2"}, "unknown preprocessing 'tf2'.*pytorch_fid, tf1"),
        ({"width_divisor": 3}, "width_divisor is 3; it must divide 16"),
        ({"num_logits": 0}, "num_logits is 0"),
    ],
    ids=str,
)
def test_refused_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("Inception", **fields)
