"""Features of texts: tokenizer and network together, batches, precision, bad folders."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.quantise import quantise_t5
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import apply_fn, init_params
from lit_jax.models.registry import model_config
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.sampling import text_features
from lit_jax.sampling.text_features import TextEncoder, load_text_encoder
from support.golden_cases import relative_error
from support.text_encoder_cases import TINY_T5, write_text_encoder

TEXTS = ["a red circle", "", "two blue squares left of a dog", "a photo", "red circle " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return load_text_encoder(folder)


def test_features(folder: Path, encoder: TextEncoder) -> None:
    """The network on the tokenizer's ids and mask, padding included."""
    features, mask = encoder.features(TEXTS, 12, batch_size=2)
    assert features.shape == (5, 12, TINY_T5.d_model) and features.dtype == np.float32
    assert mask.shape == (5, 12) and mask.dtype == np.int32
    ids, expected_mask = encoder.tokenizer(TEXTS, 12)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask[1].sum() == 1 and mask[4].sum() == 12
    params = init_params(TINY_T5, jax.random.key(0))
    expected = jax.jit(apply_fn(TINY_T5))(params, ids, mask)
    assert relative_error(features, expected) < 1e-5
    assert encoder.identity.id == folder.name and encoder.config == TINY_T5


def test_other_texts_change_nothing(encoder: TextEncoder) -> None:
    """Bit for bit: a text alone, and the same among others."""
    together = encoder.features(TEXTS, 12, batch_size=2)[0]
    alone = encoder.features([TEXTS[2]], 12, batch_size=2)[0]
    np.testing.assert_array_equal(alone[0], together[2])
    assert encoder.features([], 12)[0].shape == (0, 12, TINY_T5.d_model)


def test_one_program_per_shape(encoder: TextEncoder) -> None:
    program = text_features.encoder_program(encoder.config)
    program.clear_cache()
    for texts in (TEXTS, TEXTS[:1], TEXTS[:4]):
        encoder.features(texts, 9, batch_size=3)
    assert program._cache_size() == 1
    encoder.features(TEXTS, 10, batch_size=3)
    assert program._cache_size() == 2


def test_precision(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    quantise_t5(folder, tmp_path / "int8")
    expected = encoder.features(TEXTS, 12)[0]
    half = load_text_encoder(folder, "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    rounded = load_text_encoder(tmp_path / "int8", "bfloat16")
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(rounded.params)}
    assert kinds == {"int8", "bfloat16", "float32"}
    assert rounded.params["final_norm"]["scale"].dtype == np.float32
    for other in (half, rounded):
        features = other.features(TEXTS, 12)[0]
        assert features.dtype == np.float32
        assert 1e-5 < relative_error(features, expected) < 0.05
        encoder.identity.require_same(other.identity, "ours", "theirs")


def test_bad_folders(folder: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="unknown dtype of the text encoder 'float16'"):
        load_text_encoder(folder, "float16")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_text_encoder(tmp_path / "nowhere")
    config = model_config("DiT", hidden_size=16, depth=1, num_heads=2, input_size=8)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    save_model_dir(tmp_path / "dit", config, params, {})
    with pytest.raises(ValueError, match=r"holds a DiT; a text encoder \(T5\) is needed"):
        load_text_encoder(tmp_path / "dit")
    write_text_encoder(tmp_path / "t5")
    (tmp_path / "t5" / TOKENIZER_FILE).unlink()
    with pytest.raises(ValueError, match=r"no tokenizer/spiece\.model.*--tokenizer FILE"):
        load_text_encoder(tmp_path / "t5")
    with pytest.raises(ValueError, match="batch_size is 0"):
        encoder.features(TEXTS, 12, 0)
