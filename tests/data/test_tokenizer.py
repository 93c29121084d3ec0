"""The tokenizer: the ids of transformers' T5Tokenizer, T5's rules, files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_jax.data.tokenizer import SPANS, Tokenizer, load_tokenizer
from lit_jax.storage.files import sha256_file
from support.text_encoder_cases import sentencepiece_model, write_tokenizer

TEXTS = [
    "",
    "   ",
    "a red circle",
    "  a\tred\n\ncircle   left ",
    "A Red CIRCLE",
    "café naïve ＡＢＣ ﬁne cafe\u0301 …½",
    "unknown: zzz €€€ 😀 ok",
    "日本 テスト\u3000日本",
    "zero\u200bwidth no\u00a0break \ufeffmark \u2028line",
    "semi-final don't 3.14 <b>red</b>",
    "a ▁ b▁c",
    "a </s> b",
    "a</s>b <pad> <unk>c",
    "red </s>",
    "<extra_id_0> red<extra_id_5>blue <extra_id_99> <extra_id_100> <EXTRA_ID_1>",
    "a" * 500,
    "a red circle left of " * 50,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("t5"))


@pytest.mark.parametrize("max_length", [1, 2, 12, 300])
def test_parity_with_transformers(path: Path, max_length: int) -> None:
    transformers = pytest.importorskip("transformers")
    official = transformers.T5Tokenizer.from_pretrained(str(path.parent))
    expected = official(
        # Its padding and cutting as PixArt asks for; stripped as PixArt strips.
        [text.strip() for text in TEXTS],
        max_length=max_length,
        padding="max_length",
        truncation=True,
        return_tensors="np",
    )
    ids, mask = Tokenizer(path, 32128)(TEXTS, max_length)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == (len(TEXTS), max_length)
    for text, *rows in zip(
        TEXTS, ids, mask, expected["input_ids"], expected["attention_mask"], strict=True
    ):
        np.testing.assert_array_equal(rows[0], rows[2], err_msg=repr(text))
        np.testing.assert_array_equal(rows[1], rows[3], err_msg=repr(text))


def test_rules_of_t5(path: Path) -> None:
    """Cut to one less than the length, then </s>, then zeros: by hand."""
    tokenizer = Tokenizer(path, 32128)
    first = tokenizer.encode("a red circle")
    assert len(first) == 3 and min(first) > 2
    ids, mask = tokenizer(["", "a red circle", "a red circle " * 9], 5)
    np.testing.assert_array_equal(ids[0], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ids[1], [*first, 1, 0])
    np.testing.assert_array_equal(ids[2], [*first, first[0], 1])
    np.testing.assert_array_equal(mask, [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert [tokenizer.length(text) for text in ("", "a red circle", " a red ")] == [1, 4, 3]
    ids, mask = tokenizer([], 5)
    assert ids.shape == mask.shape == (0, 5)
    assert tokenizer.sha256 == sha256_file(path)


def test_spans_without_a_place_are_text(path: Path) -> None:
    """The tokens for masked spans end the vocabulary; a small network has no rows for them."""
    large, pieces = Tokenizer(path, 32128), len_of(path)
    assert large.encode("<extra_id_99>") == [pieces]
    assert large.encode("<extra_id_0>") == [pieces + SPANS - 1]
    small = Tokenizer(path, pieces + 1)
    assert small.encode("<extra_id_99>") == [pieces]
    assert len(small.encode("<extra_id_0>")) > 1 and max(small.encode("<extra_id_0>")) < pieces
    with pytest.raises(ValueError, match=f"{pieces} pieces, the encoder a vocabulary of"):
        Tokenizer(path, pieces - 1)


def len_of(path: Path) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes()).get_piece_size()


def test_model_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vocab_size": 200}}))
    with pytest.raises(ValueError, match=r"no tokenizer/spiece\.model.*--tokenizer FILE"):
        load_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path).sha256 == sha256_file(path)
    assert len(load_tokenizer(tmp_path).encode("<extra_id_0>")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no sentencepiece model"),
        (
            sentencepiece_model(pad_id=3, bos_id=1, eos_id=2, unk_id=0),
            r"ids \(3, 2, 0\) for padding, end and unknown; T5's are \(0, 1, 2\)",
        ),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path / "spiece.model", 32128)


def test_bad_arguments(path: Path) -> None:
    tokenizer = Tokenizer(path, 32128)
    with pytest.raises(ValueError, match="texts is 'a red circle'; it must be a list"):
        tokenizer("a red circle", 5)
    with pytest.raises(ValueError, match="max_length is 0"):
        tokenizer(["a"], 0)
