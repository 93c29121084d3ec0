"""What a user sees of every kind of broken, foreign or odd checkpoint: the exact message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import lit_jax
from support import checkpoint_files as files
from support.golden_cases import COPIES, load_state_dict
from tools.convert_torch_ckpt import main

pytest.importorskip("torch")

STATE = load_state_dict(COPIES, "dit_p8_nosigma_nodrop")
FLAGS = ["--model", "DiT", "--set", "num_heads=6", "class_dropout_prob=0"]
KEY = "blocks.1.attn.proj.bias"

REFUSED: dict[str, tuple[Callable[[], Path], str]] = {
    "truncated safetensors": (
        lambda: files.truncated(Path("a.safetensors"), STATE),
        "a.safetensors cannot be read: it is cut short, 222,360 of 444,720 bytes; download or copy"
        " it again",
    ),
    "safetensors without a whole header": (
        lambda: files.truncated(Path("a.safetensors"), STATE, 0.001),
        "a.safetensors cannot be read: it is cut short, 444 of more than 2,864 bytes; download or"
        " copy it again",
    ),
    "pickle with code": (
        lambda: files.pickle_with_code(Path("a.pt"), STATE, Path("marker")),
        "a.pt is refused: unpickling it would call posix.mkdir, and a file that calls functions can"
        " do anything. A checkpoint needs tensors alone; if you trust the file, save those:"
        " torch.save(model.state_dict(), FILE)",
    ),
    "plain pickle with code": (
        lambda: files.pickle_with_code(Path("a.pt"), STATE, Path("marker"), plain=True),
        "a.pt cannot be read: it is no file of tensors that torch.save wrote (Unsupported operand"
        " 149)",
    ),
    "one key renamed": (
        lambda: files.renamed_key(Path("a.safetensors"), STATE, KEY, "blocks.1.attn.out.bias"),
        "the checkpoint does not fit the model, 2 problem(s):\n"
        "  unused key 'blocks.1.attn.out.bias' (48,): the model has no place for it\n"
        "  unfilled parameter blocks/attn/out/bias[1]: key 'blocks.1.attn.proj.bias' (48,) is"
        " missing",
    ),
    "one shape changed": (
        lambda: files.changed_shape(Path("a.safetensors"), STATE, KEY),
        "the checkpoint does not fit the model, 1 problem(s):\n"
        "  shape of 'blocks.1.attn.proj.bias': checkpoint (49,), model (48,)"
        " (blocks/attn/out/bias[1])",
    ),
    "one shape that tells the width changed": (
        lambda: files.changed_shape(Path("a.safetensors"), STATE, "x_embedder.proj.weight"),
        "hidden_size 49 is not divisible by num_heads 6",
    ),
    "shard missing": (
        lambda: files.missing_shard(Path("a"), STATE),
        "a lacks the shards model-00002-of-00002.safetensors of model.safetensors.index.json",
    ),
    "index missing": (
        lambda: files.missing_index(Path("a"), STATE),
        "a holds shards (model-00001-of-00002.safetensors, ...) without their index.json",
    ),
    "key that the index lacks": (
        lambda: files.key_missing_in_index(Path("a"), STATE, "pos_embed"),
        "the shards do not agree with model.safetensors.index.json:\n  'pos_embed' is in"
        " model-00001-of-00002.safetensors, which the index does not say",
    ),
    "key that the shard lacks": (
        lambda: files.key_missing_in_shard(Path("a"), STATE, "pos_embed"),
        "the shards do not agree with model.safetensors.index.json:\n  'pos_embed' is not in"
        " model-00001-of-00002.safetensors, where the index says it is",
    ),
    "key in two shards": (
        lambda: files.key_in_two_shards(Path("a"), STATE, "pos_embed"),
        "the shards do not agree with model.safetensors.index.json:\n  'pos_embed' is in more than"
        " one shard",
    ),
    "web page": (
        lambda: files.html_page(Path("a.pt")),
        "a.pt is a web page, not a checkpoint; download it from a direct link",
    ),
    "web page as safetensors": (
        lambda: files.html_page(Path("a.safetensors")),
        "a.safetensors is a web page, not a checkpoint; download it from a direct link",
    ),
    "empty file": (
        lambda: files.empty_file(Path("a.pt")),
        "a.pt is empty (0 bytes); download or copy it again",
    ),
    "git-lfs pointer": (
        lambda: files.lfs_pointer(Path("a.bin")),
        "a.bin is a git-lfs pointer, not the file itself; run: git lfs pull",
    ),
    "several files": (
        lambda: files.several_files(Path("a"), STATE, "0050000.pt", "0100000.pt"),
        "a does not hold exactly one checkpoint (.safetensors, .pt, .pth, .bin, .index.json), but"
        " 0050000.pt, 0100000.pt; name a file",
    ),
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(source: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a run that must end with exit code 2 and write nothing."""
    before = set(os.listdir())
    capsys.readouterr()
    assert main(["--src", str(source), "--dst", "m", *flags]) == 2
    assert set(os.listdir()) == before, "something was written"
    text = capsys.readouterr().err
    assert text.endswith("\n")
    # What only the numbers show comes after the progress bar.
    bar, separator, message = text.removesuffix("\n").partition("error: ")
    assert separator and (not bar or bar.startswith("\rconverting"))
    return message


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, message = REFUSED[case]
    assert refusal(build(), FLAGS, capsys) == message
    assert not Path("marker").exists(), "code of the file was run"


def test_truncated_torch_file(capsys: pytest.CaptureFixture[str]) -> None:
    source = files.truncated(Path("a.pt"), STATE)
    assert refusal(source, FLAGS, capsys) == (
        f"a.pt cannot be read: it is cut short at {source.stat().st_size:,} bytes, the end of the"
        " archive is missing; download or copy it again"
    )


def test_wrong_family(capsys: pytest.CaptureFixture[str]) -> None:
    """A network of nobody's, then the network of another --model."""
    text = refusal(files.other_family(Path("mlp.safetensors")), [], capsys)
    assert text.startswith(
        "not a checkpoint of a known layout: its 4 keys start with layers.0.bias, layers.0.weight,"
        " layers.2.bias, layers.2.weight; looked for one of "
    )
    assert "blocks.0.attn.qkv.weight (DiT)" in text and "t_block.1.weight (PixArt)" in text
    source = files.write(Path("dit.safetensors"), STATE)
    assert refusal(source, ["--model", "T5-v1.1-XXL"], capsys) == (
        "the checkpoint is not --model T5-v1.1-XXL: its keys are those of DiT or LiT or CLEAR"
        " (layout 'dit')"
    )
    assert refusal(source, ["--model", "LiT"], capsys) == (
        "the checkpoint is not --model LiT:\n  family: asked for 'LiT', the checkpoint has 'DiT'"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Widened to float32 exactly; the summary says what was stored."""
    source = files.half_precision(Path(f"half{suffix}"), STATE, dtype)
    assert main(["--src", str(source), "--dst", "m", *FLAGS]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (
        f"31 keys used (model weights), 110,272 parameters, stored as {dtype}, written as float32"
    )
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    expected = STATE["final_layer.linear.weight"].T.astype(kind).astype(np.float32)
    np.testing.assert_array_equal(lit_jax.load_model("m").final_layer.linear.kernel[...], expected)


def test_non_contiguous_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    source = files.non_contiguous(Path("views.pt"), STATE)
    assert main(["--src", str(source), "--dst", "m", *FLAGS]) == 0
    assert capsys.readouterr().out.startswith("31 keys used (model weights), 110,272 parameters")
    files.write(Path("plain.pt"), STATE)
    assert main(["--src", "plain.pt", "--dst", "n", *FLAGS]) == 0
    one, two = (lit_jax.load_model(name) for name in "mn")
    np.testing.assert_array_equal(one.blocks.attn.k.kernel[...], two.blocks.attn.k.kernel[...])
    np.testing.assert_array_equal(one.x_embedder.kernel[...], two.x_embedder.kernel[...])


def test_wrapped_keys_and_non_finite_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = {f"_orig_mod.module.{key}": value for key, value in STATE.items()}
    assert main(["--src", str(files.write(Path("w.pt"), wrapped)), "--dst", "m", *FLAGS]) == 0
    broken = dict(STATE) | {KEY: np.full(48, np.inf, np.float32)}
    Path("m").rename("kept")
    text = refusal(files.write(Path("b.safetensors"), broken), FLAGS, capsys)
    assert text.split("\n")[-1] == f"  '{KEY}' holds 48 non-finite values of 48"
