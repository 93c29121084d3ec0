"""Model folders of int8 T5s: what is written, read back, and refused; leaves read one by one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import lit_jax
from lit_jax.checkpoints.identity import FLOAT_SHA256
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.quantise import quantise_t5
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import init_params
from lit_jax.models.registry import model_config
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.models.t5.int8 import quantise
from support.models import load_model_dir
from support.text_encoder_cases import TINY_T5, write_text_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float T5 and its int8 form."""
    place = tmp_path_factory.mktemp("models")
    write_text_encoder(place / "float")
    quantise_t5(place / "float", place / "int8")
    return place / "float", place / "int8"


def flat(model_dir: Path, param_dtype: str = "float32") -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(load_model_dir(model_dir, dtype=param_dtype)[1], sep="/")


def test_written_numbers(folders: tuple[Path, Path]) -> None:
    """Every leaf of every layer is what the rounding of that layer's matrix gives."""
    source, found = map(flat, folders)
    kernels = [path for path in source if path.endswith("/kernel")]
    assert len(kernels) == 7
    for path in kernels:
        for layer in range(TINY_T5.num_layers):
            integers, scale = quantise(jnp.asarray(source[path][layer]), 0)
            np.testing.assert_array_equal(found[path][layer], integers)
            np.testing.assert_array_equal(found[path.replace("kernel", "scale")][layer], scale)
    integers, scale = quantise(jnp.asarray(source["shared/embedding"]), 1)
    np.testing.assert_array_equal(found["shared/embedding"], integers)
    np.testing.assert_array_equal(found["shared/scale"], scale)
    for path in set(source) - set(kernels) - {"shared/embedding"}:
        np.testing.assert_array_equal(found[path], source[path])


def test_folder(folders: tuple[Path, Path]) -> None:
    source, target = folders
    assert sorted(os.listdir(target)) == ["config.json", "params", "tokenizer"]
    assert (target / TOKENIZER_FILE).read_bytes() == (source / TOKENIZER_FILE).read_bytes()
    content = json.loads((target / "config.json").read_text())
    assert content["model"]["weights"] == "int8"
    assert content["provenance"] == {
        "dtype": "int8",
        FLOAT_SHA256: ModelFolder(source).float_sha256,
    }
    assert ModelFolder(target).float_sha256 == ModelFolder(source).float_sha256


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_integers_stay_integers(folders: tuple[Path, Path], param_dtype: str) -> None:
    leaves = flat(folders[1], param_dtype)
    assert leaves["blocks/attn/q/kernel"].dtype == np.int8
    assert leaves["blocks/attn/q/scale"].dtype == jnp.bfloat16
    assert leaves["final_norm/scale"].dtype == param_dtype
    model = lit_jax.load_model(folders[1], dtype=param_dtype)
    assert model.config == dataclasses.replace(TINY_T5, weights="int8", dtype=param_dtype)
    assert model.shared.embedding[...].dtype == jnp.int8


def test_errors_of_the_rounding_are_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    read: list[int] = []
    errors = quantise_t5(folders[0], tmp_path / "m", progress=read.append)
    assert len(errors) == 8 and all(0 < error < 0.01 for error in errors.values())
    assert sum(read) == sum(leaf.size for path, leaf in flat(folders[0]).items() if path in errors)


def test_leaves_one_by_one(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        whole = flat(folder)
        leaves = ModelFolder(folder).leaves()
        assert set(leaves) == set(whole)
        for path, leaf in leaves.items():
            assert leaf.read().dtype == leaf.dtype == whole[path].dtype
            np.testing.assert_array_equal(leaf.read(), whole[path])
    (folders[0].parent / "damaged").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        ModelFolder(folders[0].parent / "damaged")


def test_older_folders_hold_float_weights(tmp_path: Path) -> None:
    """A T5 from before `weights` was a field."""
    write_text_encoder(tmp_path / "m")
    content = json.loads((tmp_path / "m/config.json").read_text())
    del content["model"]["weights"]
    (tmp_path / "m/config.json").write_text(json.dumps(content))
    assert load_model_dir(tmp_path / "m")[0] == TINY_T5
    del content["model"]["d_ff"]
    (tmp_path / "m/config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks d_ff"):
        load_model_dir(tmp_path / "m")


def test_refusals(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    with pytest.raises(ValueError, match="holds int8 weights already; name the folder with the"):
        quantise_t5(target, tmp_path / "m")
    with pytest.raises(ValueError, match="exists; pass --overwrite"):
        quantise_t5(source, target)
    config = model_config("DiT", hidden_size=16, depth=1, num_heads=2, input_size=8)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    save_model_dir(tmp_path / "dit", config, params, {})
    with pytest.raises(ValueError, match=r"holds a DiT; a text encoder \(T5\) is needed"):
        quantise_t5(tmp_path / "dit", tmp_path / "m")
    assert os.listdir(tmp_path) == ["dit"]


def test_a_failure_keeps_what_was_there(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise_t5(folders[0], tmp_path / "m")
    before = (tmp_path / "m/config.json").read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("writing chunk: no space left (os error 28)")

    monkeypatch.setattr("lit_jax.checkpoints.quantise.write_unread", full)
    for name in ("m", "new"):
        with pytest.raises(ValueError, match=f"{name} cannot be written: no space left$"):
            quantise_t5(folders[0], tmp_path / name, overwrite=True)
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m/config.json").read_bytes() == before
