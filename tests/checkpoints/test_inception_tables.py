"""The file of pytorch-fid: its keys, both directions, and what is read from its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.inception.torch_keys import LAYOUTS
from support.golden_cases import golden_sources, load_meta
from support.inception_cases import TINY, tiny_weights

(LAYOUT,) = LAYOUTS


def shapes_of(config: InceptionConfig, **changed: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A state dict with the right shapes that takes no memory."""
    shapes = {key: slot.source_shape for key, slot in slots(LAYOUT, config).items()}
    shapes |= {key.replace("__", "."): shape for key, shape in changed.items()}
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("folder", golden_sources("inception.json"))
def test_keys_and_shapes_are_those_of_the_file(folder: Path) -> None:
    official = load_meta(folder, "inception")["keys"]
    ours = {key: list(slot.source_shape) for key, slot in slots(LAYOUT, InceptionConfig()).items()}
    assert ours == official
    assert layout_of(list(official)) is LAYOUT


def test_round_trip() -> None:
    state = tiny_weights()
    params, report = import_params(state, TINY)
    assert report.used == len(state) == 472 and not report.dropped
    exported = export_params(params, TINY, "pytorch-fid")
    assert set(exported) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
    block = params["Mixed_6b"]["branch7x7_2"]
    key = "Mixed_6b.branch7x7_2"
    np.testing.assert_array_equal(block["bn"]["var"], state[f"{key}.bn.running_var"])
    np.testing.assert_array_equal(
        block["conv"]["kernel"][0, 5], state[f"{key}.conv.weight"][..., 0, 5].T
    )


def test_training_leftovers_are_dropped_with_a_reason() -> None:
    extra = {
        "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7),
        "AuxLogits.conv0.conv.weight": np.zeros((8, 8, 1, 1), np.float32),
        "AuxLogits.fc.bias": np.zeros(10, np.float32),
    }
    _, report = import_params(tiny_weights() | extra, TINY)
    assert set(report.dropped) == set(extra)
    assert "counter" in report.dropped["Mixed_5b.branch1x1.bn.num_batches_tracked"]
    assert "auxiliary classifier" in report.dropped["AuxLogits.fc.bias"]


def test_every_key_is_accounted_for() -> None:
    state = tiny_weights()
    del state["Mixed_7c.branch_pool.bn.running_mean"]
    state["Mixed_8a.branch1x1.conv.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    with pytest.raises(ValueError) as refusal:
        import_params(state, TINY)
    assert "unused key 'Mixed_8a.branch1x1.conv.weight'" in str(refusal.value)
    assert "Mixed_7c/branch_pool/bn/mean" in str(refusal.value)


@pytest.mark.parametrize(
    "config",
    [
        InceptionConfig(),
        TINY,
        InceptionConfig(width_divisor=2, num_logits=999),
        InceptionConfig(width_divisor=8, preprocessing="pytorch_fid"),
    ],
    ids=str,
)
def test_architecture_is_read_from_shapes(config: InceptionConfig) -> None:
    """All but the preprocessing, which only the user can tell."""
    told = {} if config.preprocessing == "tf1" else {"preprocessing": config.preprocessing}
    assert detect_config(shapes_of(config), None, told) == config


@pytest.mark.parametrize(
    ("state", "overrides", "message"),
    [
        (shapes_of(InceptionConfig(num_logits=1000)), {}, "1000 rows: that is torchvision's"),
        (
            shapes_of(TINY),
            {"num_logits": 1008},
            "num_logits: asked for 1008, the checkpoint has 10",
        ),
        (shapes_of(TINY, Conv2d_1a_3x3__conv__weight=(5, 3, 3, 3)), {}, "5 filters.*one of 2, 4"),
        (shapes_of(TINY, fc__weight=(10,)), {}, r"fc.weight' has shape \(10,\); 2 axes"),
        (shapes_of(TINY), {"preprocessing": "tf2"}, "unknown preprocessing 'tf2'"),
    ],
    ids=["torchvision", "other logits", "odd width", "rank", "preprocessing"],
)
def test_refused_files(state: Mapping[str, Any], overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_config(state, None, overrides)


def test_torchvision_network_on_request() -> None:
    state = shapes_of(InceptionConfig(num_logits=1000))
    assert detect_config(state, None, {"num_logits": 1000}).num_logits == 1000  # type: ignore[union-attr]


def test_config_json_of_something_else() -> None:
    with pytest.raises(ValueError, match="describes UNet2DModel.*folder of its own"):
        detect_config(shapes_of(TINY), hub={"_class_name": "UNet2DModel"})
