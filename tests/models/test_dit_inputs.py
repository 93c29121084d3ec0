"""What the network takes: images, times and labels of the right shapes, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.functional import abstract_params, apply_fn, with_params
from support.attention_cases import random_like
from support.dit_cases import batch, forward, tiny
from support.golden_cases import relative_error


def test_unconditional_model() -> None:
    config = tiny(num_classes=0)
    params = random_like(abstract_params(config))
    assert "y_embedder" not in params
    x, t, labels = batch(config)
    assert labels is None
    out = forward(config)(params, x, t, None)
    assert out.shape == (2, 4, 4, 6) and np.isfinite(out).all() and np.any(out)
    with pytest.raises(ValueError, match="labels are given, but the model has num_classes=0"):
        apply_fn(config)(params, x, t, jnp.array([0, 1]))


def test_labels_are_needed() -> None:
    config = tiny("DiT")
    x, t, _ = batch(config)
    with pytest.raises(ValueError, match="labels are missing, but the model has num_classes=5"):
        apply_fn(config)(random_like(abstract_params(config)), x, t, None)


def test_no_null_row_without_label_dropout() -> None:
    with_null, without = tiny(), tiny(class_dropout_prob=0.0)
    assert abstract_params(with_null)["y_embedder"]["embedding"].shape == (6, 16)
    assert abstract_params(without)["y_embedder"]["embedding"].shape == (5, 16)
    params = random_like(abstract_params(without))
    assert np.isfinite(forward(without)(params, *batch(without))).all()


def test_conditions_change_the_output() -> None:
    config = tiny()
    params, f = random_like(abstract_params(config)), forward(config)
    x, t, labels = batch(config)
    out = f(params, x, t, labels)
    assert relative_error(f(params, x, t + 50, labels), out) > 1e-3
    assert relative_error(f(params, x, t, jnp.array([2, 5])), out) > 1e-3
    np.testing.assert_array_equal(f(params, x, t.astype(jnp.float32), labels), out)


def test_no_variance_channels_without_learn_sigma() -> None:
    config = tiny(learn_sigma=False)
    params = random_like(abstract_params(config))
    assert params["final_layer"]["linear"]["kernel"].shape == (16, 12)
    assert forward(config)(params, *batch(config)).shape == (2, 4, 4, 3)


def test_rectangular_input() -> None:
    """With closed gates a token sees only itself, so a pixel moves its own patch and no other."""
    config = tiny("LiT", input_size=(4, 8))
    params = random_like(abstract_params(config))
    x, t, labels = batch(config)
    open_gates = forward(config)(params, x, t, labels)
    assert open_gates.shape == (2, 4, 8, 6) and np.isfinite(open_gates).all()
    params["blocks"]["adaln"] = jax.tree.map(np.zeros_like, params["blocks"]["adaln"])
    for row, column in ((0, 0), (3, 2), (1, 7)):
        moved = x.at[:, row, column].add(1.0)
        change = forward(config)(params, moved, t, labels) - forward(config)(params, x, t, labels)
        touched = np.argwhere(np.abs(change[0]).max(axis=-1) > 1e-6)
        top, left = row - row % 2, column - column % 2
        assert touched.tolist() == [[top + i, left + j] for i in (0, 1) for j in (0, 1)]


@pytest.mark.parametrize("shape", [(2, 8, 4, 3), (2, 4, 8, 4), (4, 8, 3), (2, 3, 4, 8)])
def test_input_of_another_shape(shape: tuple[int, ...]) -> None:
    config = tiny("DiT", input_size=(4, 8))
    with pytest.raises(ValueError, match=r"takes \[batch, height, width.*\[B, 4, 8, 3\]"):
        jax.eval_shape(
            apply_fn(config), abstract_params(config), jnp.zeros(shape), *batch(config)[1:]
        )


@pytest.mark.parametrize(
    ("t", "cond", "message"),
    [
        (
            7,
            [1, 2],
            r"t of shape \(\) for .* \(2, 4, 4, 3\); .* one value per image, \[2\]",
        ),
        ([7], [1, 2], r"t of shape \(1,\) for input of shape \(2, 4, 4, 3\)"),
        ([7, 8, 9], [1, 2], r"t of shape \(3,\)"),
        ([7, 8], [1], r"cond of shape \(1,\) for input of shape \(2, 4, 4, 3\)"),
        ([7, 8], 1, r"cond of shape \(\)"),
        ([7, 8], [[1], [2]], r"cond of shape \(2, 1\)"),
    ],
)
def test_one_time_and_label_per_image(t: object, cond: object, message: str) -> None:
    config = tiny("DiT")
    x = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            apply_fn(config), abstract_params(config), x, jnp.asarray(t), jnp.asarray(cond)
        )


@pytest.mark.parametrize("wrong", [-1, 6, 1000])
def test_labels_outside_the_table(wrong: int) -> None:
    """Refused where they are numbers; under jit they are not, and too large a one shows as NaN."""
    config = tiny("DiT", depth=1)
    params = random_like(abstract_params(config))
    x, t, _ = batch(config)
    labels = np.array([0, wrong])
    for given in (labels, jnp.asarray(labels)):
        with pytest.raises(ValueError, match=rf"label {wrong} is not in 0\.\.5, 5 being the null"):
            with_params(config, params)(x, t, given)
    out = np.asarray(forward(config)(params, x, t, labels))
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).any() == (wrong > 0)


def test_labels_without_a_null_class() -> None:
    config = tiny("DiT", class_dropout_prob=0.0)
    x, t, _ = batch(config)
    with pytest.raises(ValueError, match=r"label 5 is not in 0\.\.4$"):
        with_params(config, random_like(abstract_params(config)))(x, t, jnp.array([4, 5]))
