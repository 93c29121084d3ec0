"""Identities of text encoders: equal for the forms of one network, different for another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lit_jax.checkpoints import identity as fingerprint
from lit_jax.checkpoints.identity import (
    FLOAT_SHA256,
    LeafSum,
    TextEncoderIdentity,
    text_encoder_identity,
    tree_sha256,
)
from lit_jax.checkpoints.quantise import quantise_t5
from lit_jax.config import from_mapping
from lit_jax.models.t5.config import TOKENIZER_FILE
from support.text_encoder_cases import TINY_T5, write_text_encoder


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


def test_a_recorded_sum_is_taken_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_encoder(tmp_path / "a")
    record(tmp_path / "a", "1" * 64)
    monkeypatch.setattr(fingerprint, "stored_leaves", None)
    assert text_encoder_identity(tmp_path / "a").sha256 == "1" * 64


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
