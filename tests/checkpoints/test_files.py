"""Which files are a checkpoint, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lit_jax.checkpoints import safetensors_files
from lit_jax.checkpoints.safetensors_files import SafetensorsReader
from lit_jax.checkpoints.weight_files import (
    fingerprint,
    join_shards,
    locate,
    new_parents,
    without_wrappers,
)
from lit_jax.storage.files import sha256_file

SUFFIXES = (".safetensors", ".pt", ".bin")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"")
    return folder


def sharded(folder: Path, index: dict[str, str] | None = None) -> Path:
    """Two shards with a, b and c, and their index."""
    numbers = {key: np.full((2, n), n, np.float32) for n, key in enumerate("abc", start=1)}
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    save_file({"a": numbers["a"], "b": numbers["b"]}, folder / names[0])
    save_file({"c": numbers["c"]}, folder / names[1])
    weight_map = {"a": names[0], "b": names[0], "c": names[1]} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_the_only_weight_file(tmp_path: Path) -> None:
    fill(tmp_path, "training_args.bin", "optimizer.pt")  # of a trainer, no weights
    fill(tmp_path, "README.md", "config.json", ".cache.pt", "DiT-XL-2-256x256.pt")
    source = locate(tmp_path, SUFFIXES)
    assert source.files == (tmp_path / "DiT-XL-2-256x256.pt",)
    assert source.name == "DiT-XL-2-256x256.pt" and source.hub == {} and source.shard_of is None
    assert locate(tmp_path / "DiT-XL-2-256x256.pt", SUFFIXES) == source


@pytest.mark.parametrize(
    "names",
    [
        ("model.safetensors", "pytorch_model.bin"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("lit.safetensors", "lit.pt"),
        ("model.safetensors", "pytorch_model.bin.index.json"),
    ],
    ids=str,
)
def test_safetensors_are_preferred_to_pickles_of_the_same_weights(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    fill(tmp_path, *names, "config.json")
    assert locate(tmp_path, SUFFIXES).name == names[0]


def test_an_index_of_safetensors_is_preferred_to_one_of_pickles(tmp_path: Path) -> None:
    fill(sharded(tmp_path), "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")
    assert locate(tmp_path, SUFFIXES).name == "model.safetensors.index.json"


@pytest.mark.parametrize(
    "names",
    [
        ("0400000.pt", "old_student.safetensors"),
        ("diffusion_pytorch_model.bin", "model.safetensors"),
        ("model.fp16.safetensors", "pytorch_model.bin"),
    ],
    ids=str,
)
def test_safetensors_of_other_weights_are_no_substitute(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"but {', '.join(names)}; name a file"):
        locate(fill(tmp_path, *names), SUFFIXES)


def test_the_config_of_a_hub_folder(tmp_path: Path) -> None:
    fill(tmp_path, "model.safetensors")
    for content, expected in (
        ({"model_type": "t5", "d_kv": 8}, {"model_type": "t5", "d_kv": 8}),
        ({"_class_name": "AutoencoderKL"}, {"_class_name": "AutoencoderKL"}),
        ({"something": "else"}, {}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert locate(tmp_path, SUFFIXES).hub == expected
        assert locate(tmp_path / "model.safetensors", SUFFIXES).hub == expected
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json holds a list, not a JSON object"):
        locate(tmp_path, SUFFIXES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "does not hold exactly one checkpoint (.safetensors, .pt, .bin, .index.json), but no"),
        (("config.json", "params", ".cache.pt"), ", but config.json, params; name a file"),
        (("b.safetensors", "a.safetensors", "README.md"), "but a.safetensors, b.safetensors; name"),
        (
            ("model-00001-of-00002.safetensors",),
            "holds shards (model-00001-of-00002.safetensors, ...) without their index.json",
        ),
        (
            ("model_index.json", "vae/config.json", "unet/config.json", "scheduler/x.json"),
            "is a pipeline of several networks; name one of its folders: unet, vae",
        ),
    ],
    ids=str,
)
def test_nothing_is_guessed(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        locate(fill(tmp_path, *names), SUFFIXES)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_shards(tmp_path: Path) -> None:
    by_folder = locate(sharded(tmp_path), SUFFIXES)
    assert by_folder == locate(tmp_path / "model.safetensors.index.json", SUFFIXES)
    assert [file.name[6:11] for file in by_folder.files] == ["00001", "00002"]
    state, _ = join_shards(by_folder, SafetensorsReader)
    assert {key: tensor.shape for key, tensor in state.items()} == {
        "a": (2, 1),
        "b": (2, 2),
        "c": (2, 3),
    }
    np.testing.assert_array_equal(state["c"], np.full((2, 3), 3, np.float32))
    print_ = fingerprint(by_folder.files)
    assert print_["files"] == {file.name: sha256_file(file) for file in by_folder.files}
    assert len(print_["sha256"]) == 64 and print_["sha256"] not in print_["files"].values()
    assert fingerprint(by_folder.files[:1]) == {"sha256": sha256_file(by_folder.files[0])}


def test_shards_that_do_not_agree_with_their_index(tmp_path: Path) -> None:
    one, two = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    sharded(tmp_path, {"a": one, "c": one, "d": two})
    with pytest.raises(ValueError) as error:
        join_shards(locate(tmp_path, SUFFIXES), SafetensorsReader)
    assert str(error.value).split("\n") == [
        "the shards do not agree with model.safetensors.index.json:",
        f"  'b' is in {one}, which the index does not say",
        f"  'c' is in {two}, which the index does not say",
        f"  'd' is not in {two}, where the index says it is",
    ]
    (tmp_path / two).unlink()
    with pytest.raises(ValueError, match=f"lacks the shards {two} of model.safetensors.index"):
        locate(tmp_path, SUFFIXES)
    with pytest.raises(ValueError, match="is one shard of several; name the folder"):
        locate(tmp_path / one, SUFFIXES)
    sharded(tmp_path, {"a": "../secrets.safetensors"})
    with pytest.raises(ValueError, match="'../secrets.safetensors', which is no file name"):
        locate(tmp_path, SUFFIXES)
    sharded(tmp_path, {})
    with pytest.raises(ValueError, match="no index of shards: it has no weight_map"):
        locate(tmp_path, SUFFIXES)


def test_one_key_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"c": np.zeros(1), "a": np.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="'a' is in more than one shard"):
        join_shards(locate(tmp_path, SUFFIXES), SafetensorsReader)


def test_the_mapping_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the window is read the file is mapped anew; the numbers stay the same."""
    monkeypatch.setattr(safetensors_files, "WINDOW_BYTES", 10)
    opened = []
    original = SafetensorsReader._open
    monkeypatch.setattr(SafetensorsReader, "_open", lambda self: opened.append(1) or original(self))
    save_file({"a": np.arange(8.0), "b": np.ones(3)}, tmp_path / "x.safetensors")
    reader = SafetensorsReader(tmp_path / "x.safetensors")
    for _ in range(3):
        np.testing.assert_array_equal(reader.read("a"), np.arange(8.0))
    assert len(opened) == 3


def test_wrappers_are_taken_off_when_all_keys_have_them() -> None:
    keys = ["_orig_mod.module.x", "_orig_mod.module.y"]
    assert without_wrappers(keys) == dict(zip(keys, "xy", strict=True))
    assert without_wrappers(["module.x", "y"]) == {"module.x": "module.x", "y": "y"}
    assert without_wrappers([]) == {}


def with_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "it is no safetensors file ("),
        ({"a": [1]}, b"", "it is no safetensors file ("),
        (
            {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
            b"12345678",
            "it is no safetensors file (",
        ),
        (
            {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
            b"12345678",
            "it is cut short, 78 of 82 bytes",
        ),
    ],
    ids=str,
)
def test_headers_that_are_none(header: object, data: bytes, message: str, tmp_path: Path) -> None:
    """A whole file with a wrong header is not called cut short."""
    with pytest.raises(ValueError) as error:
        SafetensorsReader(with_header(tmp_path / "x.safetensors", header, data))
    assert f"x.safetensors cannot be read: {message}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_floats_of_8_bits_are_refused(dtype: str, tmp_path: Path) -> None:
    header = {"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}
    with pytest.raises(ValueError) as error:
        SafetensorsReader(with_header(tmp_path / "x.safetensors", header, b"1234"))
    wanted = f"'w' has dtype {dtype}; save it as float32, float16 or bfloat16"
    assert str(error.value).endswith(wanted)


@pytest.mark.parametrize("text", ["[1]", "DiT-XL/2", '"DiT"', "null"])
def test_stored_architecture_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(1)}, path, metadata={"lit_jax.model": text})
    with pytest.raises(ValueError, match="metadata 'lit_jax.model' is .* not a JSON object"):
        SafetensorsReader(path)


def test_parents_vanish_with_a_failure(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt), new_parents(tmp_path / "kept/a/b/file"):
        assert (tmp_path / "kept/a/b").is_dir()
        raise KeyboardInterrupt
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.raises(OSError), new_parents(tmp_path / "kept/a/b/file"):
        (tmp_path / "kept/a/others").write_text("mine")
        raise OSError
    assert list((tmp_path / "kept").rglob("*")) == [tmp_path / "kept/a", tmp_path / "kept/a/others"]
    with new_parents(tmp_path / "c/file"):
        pass
    assert (tmp_path / "c").is_dir()
