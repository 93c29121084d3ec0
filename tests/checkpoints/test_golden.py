"""Official checkpoints, converted and loaded, reproduce the official outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lit_jax
from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import Params, apply_fn
from support.golden_cases import (
    COPIES,
    golden_path,
    golden_sources,
    load_arrays,
    load_meta,
    load_state_dict,
    nhwc,
    relative_error,
)
from tools.convert_torch_ckpt import main

# What shapes do not tell, per case.
CASES = {
    "dit_p2": {"num_heads": 4},
    "dit_p4": {"num_heads": 2},
    "dit_p8_nosigma_nodrop": {"num_heads": 6, "class_dropout_prob": 0.0},
    "lit_dit_p2": {},
}
SOURCES = [
    pytest.param(case, *source.values, id=f"{case}-{source.id}")
    for case in CASES
    for source in golden_sources(f"{case}.npz")
]

FORWARD, GRADIENT = 2e-5, 5e-5


def converted(folder: Path, case: str) -> tuple[DiTConfig, Params]:
    state = load_state_dict(folder, case)
    config = detect_config(state, None, CASES[case])
    return config, import_params(state, config)[0]


@pytest.mark.parametrize("case", CASES)
def test_detected_architecture_is_the_official_one(case: str) -> None:
    config = detect_config(load_state_dict(COPIES, case), None, CASES[case])
    meta = load_meta(COPIES, case)
    official = meta["config"] | meta.get("attn", {})
    assert {name: getattr(config, name) for name in official} == official


@pytest.mark.parametrize(("case", "folder"), SOURCES)
def test_loaded_model_gives_the_official_output(case: str, folder: Path, tmp_path: Path) -> None:
    config, params = converted(folder, case)
    save_model_dir(tmp_path / "model", config, params, {})
    model = lit_jax.load_model(tmp_path / "model")
    arrays = load_arrays(folder, case)
    t = "t_fractional"
    calls = [("t", "out")] + ([(t, "out_t_fractional")] if t in arrays else [])
    for time, expected in calls:
        out = model(nhwc(arrays["x"]), arrays[time], arrays["y"])
        assert relative_error(out, nhwc(arrays[expected])) < FORWARD


@pytest.mark.parametrize(("case", "folder"), SOURCES)
def test_guided_outputs(case: str, folder: Path) -> None:
    """Official guidance: the first half of x twice, labels then null, three channels guided."""
    config, params = converted(folder, case)
    arrays = load_arrays(folder, case)
    scales = [name for name in arrays if name.startswith("cfg_out_")]
    if not scales:
        pytest.skip("no guided output in this case")
    x = nhwc(arrays["cfg_x"] if "cfg_x" in arrays else arrays["x"])
    half = np.concatenate([x[: len(x) // 2]] * 2)
    out = np.asarray(jax.jit(apply_fn(config))(params, half, arrays["cfg_t"], arrays["cfg_y"]))
    cond, null = np.split(out[..., :3], 2)
    for name in scales:
        guided = null + float(name.removeprefix("cfg_out_")) * (cond - null)
        whole = np.concatenate([np.concatenate([guided, guided]), out[..., 3:]], axis=-1)
        # The extrapolation multiplies rounding errors by the scale; the outputs grow with it too.
        assert relative_error(whole, nhwc(arrays[name])) < FORWARD


@pytest.mark.parametrize(
    ("case", "folder"), [s for s in SOURCES if "grad_x" in load_arrays(s.values[1], s.values[0])]
)
def test_gradients(case: str, folder: Path) -> None:
    """Parameter gradients, exported through the same table, are torch's."""
    config, params = converted(folder, case)
    arrays = load_arrays(folder, case)
    weights = nhwc(arrays["grad_R"])

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return jnp.sum(apply_fn(config)(params, x, arrays["t"], arrays["y"]) * weights)

    for_params, for_x = jax.jit(jax.grad(loss, (0, 1)))(params, nhwc(arrays["x"]))
    assert relative_error(for_x, nhwc(arrays["grad_x"])) < GRADIENT
    state = export_params(for_params, config, layouts_for(config)[0])
    names = [name for name in arrays if name.startswith("grad_param:")]
    assert names
    for name in names:
        key = name.removeprefix("grad_param:")
        assert relative_error(state[key], arrays[name]) < GRADIENT, key


@pytest.mark.parametrize("case", CASES)
def test_export_returns_the_official_file(case: str) -> None:
    official = load_state_dict(COPIES, case)
    config, params = converted(COPIES, case)
    exported = export_params(params, config, layouts_for(config)[0])
    assert set(exported) == set(official)
    for key, value in official.items():
        assert exported[key].flags.c_contiguous
        if key == "pos_embed":  # recomputed; sines may differ in the last place between machines
            np.testing.assert_allclose(exported[key], value, rtol=0, atol=2e-7)
        else:
            np.testing.assert_array_equal(exported[key], value, err_msg=key)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_official_train_checkpoint(weights: str, tmp_path: Path) -> None:
    """The file of the official train.py, whose two sets of weights give different outputs."""
    pytest.importorskip("torch")
    try:
        checkpoint = golden_path("dit_train_ckpt.pt")
    except FileNotFoundError:
        pytest.skip("only in the full golden set; the tests of the converter write a file like it")
    flags = ["--model", "DiT", "--set", "num_heads=4"]
    # The moving average is the default.
    flags += ["--weights", "model"] if weights == "model" else []
    assert main(["--src", str(checkpoint), "--dst", str(tmp_path / "m"), *flags]) == 0
    arrays = load_arrays(checkpoint.parent, "dit_train_ckpt")
    out = lit_jax.load_model(tmp_path / "m")(nhwc(arrays["x"]), arrays["t"], arrays["y"])
    assert relative_error(out, nhwc(arrays[f"out_{weights}"])) < FORWARD
