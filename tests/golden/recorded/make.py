"""Make `recorded.tar.xz`: what lit_jax 0.1.0 leaves on disk, in the smallest networks.

It was made with commit 416ffe3, on one CPU device. In a checkout of that commit:

    PYTHONPATH=.:tests JAX_PLATFORMS=cpu python make.py WORK_FOLDER

Later versions have other names for what is imported here: this file is a record, not a tool. The
archive holds the folder in which the commands of `commands.json` were run, `experiments.py` among
its files: finished work, and in `half/` the same work stopped half-way. tests/test_recorded.py runs
the same commands in the same folder again, by the version it belongs to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from attention_cases import random_like
from inception_cases import TINY, tiny_weights
from PIL import Image
from text_encoder_cases import sentencepiece_model

import lit_jax
from lit_jax.__main__ import main as lit_jax_main
from lit_jax.config.t5 import TOKENIZER_FILE
from lit_jax.models.zoo import abstract_params, model_config
from lit_jax.weights.convert import import_params
from lit_jax.weights.fingerprint import params_sha256
from lit_jax.weights.folder import load_model_dir, save_model_dir
from tools import convert_torch_ckpt, quantize_t5

HERE = Path(__file__).resolve().parent
COMMANDS: dict[str, list[str]] = json.loads((HERE / "commands.json").read_text())

SMALL = {"input_size": 8, "hidden_size": 8, "depth": 2, "num_heads": 2}
T5 = {"vocab_size": 200, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vae": (
        "AutoencoderKL",
        {
            "block_out_channels": (2, 4),
            "norm_num_groups": 2,
            "layers_per_block": 1,
            "scaling_factor": 0.5,
        },
    ),
    "t5": ("T5", T5),
    "dit": ("DiT", SMALL | {"num_classes": 2}),
    "lit": ("LiT", SMALL | {"num_classes": 0, "kernel_size": None}),
    "clear": ("CLEAR", SMALL | {"num_classes": 2, "window_size": 2, "down_factor": 2}),
    "dig": ("DiG", SMALL | {"num_classes": 2, "depth": 1}),
    "pixart": ("PixArt", SMALL | {"depth": 1, "caption_channels": 8, "model_max_length": 8}),
}
PROMPTS = ("a red circle", "a blue square", "two green dogs")


def make(work: Path) -> None:
    """Fill the new folder `work`, and pack it."""
    work.mkdir(parents=True)
    os.chdir(work)
    shutil.copy(HERE / "experiments.py", work)
    make_inputs(np.random.default_rng(0))
    make_models()
    run("encode")
    run("encode", "half/latents", until="shards/00000.json")
    run("encode_text")
    run("self_generate")
    run("self_generate", "half/drawn", until="array_record-00000-of-00002")
    run("train")
    run("train", "half/run", until="step 1/6")
    run("train_text")
    run("train_text", "half/run_text", until="step 1/6")
    run("sample")
    run("sample", "half/samples", until="00001-of-00003.npz")
    run("generate")
    run("generate", "half/pictures", until="latents/000001-of-1.npz")
    run("generate_one")
    run("evaluate")
    run("cost")
    run("cost", "half/cost", until="compiled.json")
    make_expectations(np.random.default_rng(0))
    pack(HERE / "recorded.tar.xz")


def run(name: str, out: str = "", until: str = "") -> None:
    """Run a command, perhaps with another output: to its end, or until there is a file whose path
    ends in `until`, or until it says `until`; then as if Ctrl-C was pressed."""
    *words, output = COMMANDS[name]
    words.append(f"{output.split('=')[0]}={out}" if out else output)
    replace, show = os.replace, print

    def replace_and_stop(source: Any, target: Any) -> None:
        replace(source, target)
        if until and str(target).endswith(until):
            signal.raise_signal(signal.SIGINT)

    def show_and_stop(text: Any, **options: Any) -> None:
        show(text, **options)
        # Training tells of a step during the next one, and stops after the one after that.
        if until and str(text).startswith(until):
            signal.raise_signal(signal.SIGINT)

    with (
        mock.patch("os.replace", replace_and_stop),
        mock.patch("builtins.print", show_and_stop),
        mock.patch("sys.argv", ["lit_jax", *words]),
        contextlib.suppress(KeyboardInterrupt),
    ):
        lit_jax_main()


def make_inputs(rng: np.random.Generator) -> None:
    """Write images with classes, images with captions, a reference, and prompts."""

    def picture(path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(16, 25, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)

    for index in range(8):
        picture(f"images/{('cat', 'dog')[index % 2]}/{index}.png")
    for index, prompt in enumerate((*PROMPTS, "a cat left of a circle")):
        picture(f"captioned/{index}.png")
        Path(f"captioned/{index}.long.txt").write_text(prompt + "\n")
        if index:  # the first image has a long caption only
            Path(f"captioned/{index}.short.txt").write_text(prompt.split()[-1] + "\n")
    # One picture again and again: covariances of 33 MB are all zeros then, which can be packed.
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Path("reference").mkdir()
    for index in range(4):
        Image.fromarray(pixels).save(f"reference/{index}.png")
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")


def make_models() -> None:
    """Write model folders: random ones, one that was converted, one in int8."""
    for seed, (name, (family, fields)) in enumerate(NETWORKS.items()):
        config = model_config(family, **fields)
        params = random_like(abstract_params(config), seed)
        if "final_layer" in params:  # latents that are not too large, images with all grey levels
            params["final_layer"]["linear"]["kernel"] *= 0.2
        save_model_dir(f"models/{name}", config, params, {"source": "random"})
    tokenizer = Path("models/t5", TOKENIZER_FILE)
    tokenizer.parent.mkdir()
    tokenizer.write_bytes(sentencepiece_model(normalization_rule_name="identity"))
    assert quantize_t5.main(["--src=models/t5", "--dst=models/t5_int8"]) == 0
    # The DiT goes through a file like those of DiT's authors.
    export = ["--export", "--src=models/dit", "--dst=dit.safetensors", "--layout=dit"]
    assert convert_torch_ckpt.main(export) == 0
    convert = ["--src=dit.safetensors", "--dst=models/dit", "--overwrite", "--vae=models/vae"]
    assert convert_torch_ckpt.main([*convert, "--model=DiT", "--set", "num_heads=2"]) == 0
    Path("dit.safetensors").unlink()
    # Few different numbers, which can be packed: this network is larger than all others.
    coarse = {key: np.round(16 * value) / 16 for key, value in tiny_weights().items()}
    save_model_dir("models/inception", TINY, import_params(coarse, TINY)[0], {"source": "random"})


def make_expectations(rng: np.random.Generator) -> None:
    """Write `expected.json`, the hash of each network's parameters, and `expected.npz`, inputs and
    outputs of each."""
    arrays: dict[str, np.ndarray] = {}
    folders = sorted([*Path("models").iterdir(), Path("run"), Path("run_text")])
    for folder in folders:
        model = lit_jax.load_model(folder)
        inputs = inputs_of(model.config.family, rng)
        outputs = outputs_of(model, {k: jax.numpy.asarray(v) for k, v in inputs.items()})
        for name, value in (inputs | outputs).items():
            arrays[f"{folder}:{name}"] = np.asarray(value)
    np.savez_compressed("expected.npz", **arrays)  # type: ignore[arg-type]
    sums = {str(folder): params_sha256(load_model_dir(folder)[1]) for folder in folders}
    Path("expected.json").write_text(json.dumps({"params_sha256": sums}, indent=2) + "\n")


def inputs_of(family: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw what a network of this family takes."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    if family == "AutoencoderKL":
        return {"images": normal(1, 16, 16, 3), "latents": normal(1, 8, 8, 4)}
    if family == "T5":
        mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
        return {"ids": rng.integers(3, 90, (2, 4), np.int32), "mask": mask}
    if family == "Inception":
        return {"images": rng.integers(0, 256, (1, 16, 16, 3), np.uint8)}
    inputs = {"x": normal(2, 8, 8, 4), "t": np.array([3, 777], np.int32)}
    if family == "PixArt":
        mask = np.array([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
        return inputs | {"tokens": normal(2, 8, 8), "mask": mask}
    return inputs | {"labels": np.array([0, 1], np.int32)}


def outputs_of(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Compute what the network makes of them."""
    family = model.config.family
    if family == "AutoencoderKL":
        encoded, decoded = model.encode(inputs["images"]), model.decode(inputs["latents"])
        return {"encoded": encoded, "decoded": decoded}
    if family == "T5":
        return {"features": model(inputs["ids"], inputs["mask"])}
    if family == "Inception":
        found = jax.jit(lambda images: model(images))(inputs["images"])
        return {"pool": found[0], "logits": found[1]}
    cond = inputs.get("labels")
    if family == "PixArt":
        cond = lit_jax.TextCondition(inputs["tokens"], inputs["mask"])
    elif not model.config.num_classes:
        cond = None
    return {"out": model(inputs["x"], inputs["t"], cond)}


def pack(archive: Path) -> None:
    """Pack the working directory, without what lies beside this file and without plots."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name == "experiments.py" or Path(member.name).match("cost/*.png"):
            return None
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz") as tar:
        for name in sorted(os.listdir()):
            tar.add(name, filter=kept)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
