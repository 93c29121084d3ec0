"""Identities of networks: recorded, or computed leaf by leaf."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from lit_jax.checkpoints import streaming
from lit_jax.checkpoints.identity import (
    FLOAT_SHA256,
    LeafSum,
    TextEncoderIdentity,
    VaeIdentity,
    params_sha256,
    tree_sha256,
)
from lit_jax.checkpoints.model_folder import ModelFolder, identity_entries
from lit_jax.checkpoints.quantise import quantise_t5
from lit_jax.checkpoints.stored import StoredArrays
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config import from_mapping
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from lit_jax.models.t5.config import TOKENIZER_FILE
from support.models import text_encoder_identity
from support.text_encoder_cases import TINY_T5, write_text_encoder

TINY_VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
TINY_PIXART = {"hidden_size": 24, "depth": 2, "num_heads": 2, "input_size": 8}


def record(model_dir: Path, value: str) -> None:
    content = json.loads((model_dir / "config.json").read_text())
    content["provenance"][FLOAT_SHA256] = value
    (model_dir / "config.json").write_text(json.dumps(content))


def test_identity(tmp_path: Path) -> None:
    write_text_encoder(tmp_path / "a")
    write_text_encoder(tmp_path / "b", seed=1)
    quantise_t5(tmp_path / "a", tmp_path / "a8")
    a, b, a8 = (text_encoder_identity(tmp_path / name) for name in ("a", "b", "a8"))
    assert (a.id, a.width, a.weights) == ("a", TINY_T5.d_model, "float32")
    assert (a8.id, a8.weights) == ("a8", "bfloat16, float32, int8")
    assert a == from_mapping(TextEncoderIdentity, dataclasses.asdict(a))
    a.require_same(a8, "the features", "--text_encoder")
    with pytest.raises(
        ValueError, match=rf"features belong to .* a \(weights sha256 {a.sha256[:9]}"
    ):
        a.require_same(b, "the features", "--text_encoder")
    (tmp_path / "a8" / TOKENIZER_FILE).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"--text_encoder is a8 \(tokenizer sha256 "):
        a.require_same(text_encoder_identity(tmp_path / "a8"), "the features", "--text_encoder")


def save_vae(path: Path, seed: int = 0, dtype: Any = np.float32) -> Any:
    """Write the model folder of a tiny VAE and return its parameters."""
    config = model_config("SD-VAE", **TINY_VAE)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(dtype), abstract_params(config)
    )
    save_model_dir(path, config, params, {})
    return params


def documented_sha256(params: Any) -> str:
    """Return the hash of all parameters by its definition, independent of the code under test."""
    digest = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(leaf, np.float32)
        digest.update(f"{path}|<f4|{array.shape}|".encode() + array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_and_computed_hashes_are_those_of_the_parameters(
    dtype: str, tmp_path: Path
) -> None:
    params = save_vae(tmp_path / "vae", dtype=jax.numpy.dtype(dtype))
    computed = ModelFolder(tmp_path / "vae")
    encoder = {name: params[name] for name in ("encoder", "quant_conv")}
    expected = VaeIdentity(
        id="vae",
        sha256=documented_sha256(params),
        encoder_sha256=documented_sha256(encoder),
        scaling_factor=0.18215,
        downsampling=2,
        latent_channels=4,
    )
    assert computed.vae_identity == expected
    assert computed.sha256 == params_sha256(computed.params())
    content = json.loads((tmp_path / "vae/config.json").read_text())
    content["identity"] = identity_entries(computed)
    (tmp_path / "vae/config.json").write_text(json.dumps(content))
    assert ModelFolder(tmp_path / "vae").vae_identity == expected


def test_recorded_hashes_are_used_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_encoder(tmp_path / "a")
    record(tmp_path / "a", "1" * 64)
    save_vae(tmp_path / "vae")
    content = json.loads((tmp_path / "vae/config.json").read_text())
    content["identity"] = {"sha256": "2" * 64, "encoder_sha256": "3" * 64}
    (tmp_path / "vae/config.json").write_text(json.dumps(content))
    monkeypatch.setattr(StoredArrays, "restore", None)
    assert text_encoder_identity(tmp_path / "a").sha256 == "1" * 64
    vae = ModelFolder(tmp_path / "vae").vae_identity
    assert (vae.sha256, vae.encoder_sha256) == ("2" * 64, "3" * 64)


def test_a_hash_needs_the_memory_of_one_batch_of_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model_config("DiT", hidden_size=384, depth=8, num_heads=6, input_size=8)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.5, np.float32), abstract_params(config)
    )
    save_model_dir(tmp_path / "m", config, params, {})
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    reads: list[int] = []
    restore = StoredArrays.restore

    def counting(self: Any, target: Any, arguments: Any) -> Any:
        reads.append(sum(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(target)))
        return restore(self, target, arguments)

    monkeypatch.setattr(StoredArrays, "restore", counting)
    monkeypatch.setattr(streaming, "BATCH_BYTES", 2**20)
    folder = ModelFolder(tmp_path / "m")
    tracemalloc.start()
    value = folder.sha256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value == documented_sha256(params)
    # Every parameter is read once, and at most one batch or the largest leaf at a time.
    assert sum(reads) == sum(sizes) and max(reads) <= max(sizes)
    assert peak < 2.5 * max(sizes) < 0.8 * sum(sizes)
    assert folder.sha256 == value and sum(reads) == sum(sizes)


def test_companions(tmp_path: Path) -> None:
    config = model_config("PixArt", caption_channels=TINY_T5.d_model, **TINY_PIXART)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(config))
    save_model_dir(tmp_path / "m", config, params, {})
    save_vae(tmp_path / "vae")
    save_vae(tmp_path / "other", seed=1)
    write_text_encoder(tmp_path / "t5")
    vae, other, t5 = (ModelFolder(tmp_path / name) for name in ("vae", "other", "t5"))
    model = ModelFolder(tmp_path / "m")
    assert (model.vae, model.text_encoder) == (None, None)
    model.require_companions(other, t5)  # nothing is recorded
    content = json.loads((tmp_path / "m/config.json").read_text())
    content |= {"vae": dataclasses.asdict(vae.vae_identity)}
    content |= {"text_encoder": dataclasses.asdict(t5.text_encoder_identity)}
    (tmp_path / "m/config.json").write_text(json.dumps(content))
    model = ModelFolder(tmp_path / "m")
    assert (model.vae, model.text_encoder) == (vae.vae_identity, t5.text_encoder_identity)
    model.require_companions(vae, t5)
    with pytest.raises(ValueError, match=r"latents of \S*m belong to the VAE vae .*--vae .*other"):
        model.require_companions(other)


def test_what_is_no_text_encoder(tmp_path: Path) -> None:
    write_text_encoder(tmp_path / "a")
    (tmp_path / "a" / TOKENIZER_FILE).unlink()
    with pytest.raises(ValueError, match=r"a has no tokenizer/spiece\.model: .*--tokenizer FILE"):
        text_encoder_identity(tmp_path / "a")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        text_encoder_identity(tmp_path)


def test_sums() -> None:
    """In parts as in one piece; of any float type; sensitive to names, shapes and numbers."""
    leaf = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    def total(*parts: np.ndarray, shape: tuple[int, ...] = leaf.shape) -> str:
        digest = LeafSum(shape)
        for part in parts:
            digest.add(part)
        return digest.hexdigest()

    whole = total(leaf)
    assert whole == total(leaf[0], leaf[1]) == total(leaf.astype(np.float16))
    # A transposed view is hashed in its own order.
    assert total(leaf.T, shape=(4, 3, 2)) == total(np.ascontiguousarray(leaf.T), shape=(4, 3, 2))
    assert len({whole, total(leaf[1], leaf[0]), total(leaf, shape=(6, 4)), total(leaf + 1)}) == 4
    sums = {"a": whole, "b": total(leaf + 1)}
    assert tree_sha256(sums) == tree_sha256(dict(reversed(sums.items())))
    assert tree_sha256(sums) != tree_sha256({"a": sums["b"], "b": sums["a"]})
