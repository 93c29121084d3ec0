"""int8 weights of T5 against float32: how close the features are, and what memory they need.

    python benchmarks/t5_int8.py [layers] [tools]

`layers`: T5-v1.1-XXL with random weights, the initial values of `models.t5`, one layer at a time:
each layer is drawn from the seed, carries all streams one block further and is freed, so that 3 GB
do for a network of 19. A row compares the final features of one way of computing with float32
weights and arithmetic: cosine similarity per token, the smallest and the mean. The memory is that
of the whole compiled network, which is never run: its arguments (the parameters) and its scratch.

`tools`: T5-v1.1-base through the programs that a user runs: a transformers folder is converted,
quantised, and each form encodes the same texts in a process of its own.

Results: `benchmarks/results/t5_int8_<part>_<platform>.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conversion import high_water_mark, write_source
from flax import nnx
from timing import write

from lit_jax.models.functional import Params, abstract_params, apply_fn, pure_params
from lit_jax.models.registry import model_config
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.int8 import dequantise, quantise
from lit_jax.models.t5.model import MASKED, RelativeBias, RMSNorm, T5Block

ROOT = Path(__file__).resolve().parents[1]
TOKENS, VALID = 40, (40, 13)

# Name -> (T5Config.weights, dtype). The first is what the others are compared with.
WAYS = {
    "float32": ("float", "float32"),
    "bfloat16": ("float", "bfloat16"),
    "int8 in float32": ("int8", "float32"),
    "int8 in bfloat16": ("int8", "bfloat16"),
}


def way(config: T5Config, name: str) -> T5Config:
    weights, dtype = WAYS[name]
    return dataclasses.replace(config, weights=weights, dtype=dtype)


WHOLE_CHANNELS = "int8, one scale per channel"
"""What the model does not do: the same without groups, for the accuracy alone."""


def rounded(block: Params) -> Params:
    """The parameters of a float block as those of an int8 block."""
    if "kernel" in block:
        kernel, scale = quantise(block["kernel"], 0)
        return {"kernel": kernel, "scale": scale}
    return {k: rounded(v) if isinstance(v, dict) else v for k, v in block.items()}


def rounded_in_channels(block: Params) -> Params:
    """The parameters of a float block after int8 with one scale per output channel."""

    def kernel(w: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.abs(w), axis=0) / 127
        return jnp.round(w / scale) * scale

    return {
        k: rounded_in_channels(v) if isinstance(v, dict) else kernel(v) if k == "kernel" else v
        for k, v in block.items()
    }


def network(module: Any, *arguments: Any) -> tuple[Any, Any]:
    """(init(key) -> parameters, apply(parameters, *inputs)) of a module, both compiled."""

    def init(key: jax.Array) -> Params:
        return pure_params(nnx.state(module(*arguments, rngs=nnx.Rngs(key))))

    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(*arguments, rngs=nnx.Rngs(0))))

    def apply(params: Params, *inputs: Any) -> Any:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graphdef, filled)(*inputs)

    return jax.jit(init), jax.jit(apply)


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Cosine similarity per token: [..., D], [..., D] -> [...]."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def compiled_bytes(config: T5Config, param_dtype: str) -> tuple[int, int]:
    """(parameters, scratch) of the whole network for one text, by the compiler's analysis."""
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, param_dtype if leaf.dtype == jnp.float32 else leaf.dtype
        ),
        abstract_params(config),
    )
    ids = jax.ShapeDtypeStruct((1, 300), jnp.int32)
    memory = jax.jit(apply_fn(config)).lower(params, ids, ids).compile().memory_analysis()
    return int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes)


def layers(name: str, seed: int) -> None:
    config = model_config(name)
    print(f"{name}: {config.num_layers} layers of width {config.d_model}", flush=True)
    keys = jax.random.split(jax.random.key(seed), config.num_layers + 1)
    key_x, key_bias = jax.random.split(keys[-1])
    mask = jnp.arange(TOKENS) < jnp.asarray(VALID)[:, None]
    mask_Bx1x1xL = jnp.where(mask[:, None, None, :], 0.0, MASKED)
    bias = RelativeBias(config, rngs=nnx.Rngs(key_bias))(TOKENS)
    # Rows of the table, not the table: 526 MB less.
    rows = jax.random.normal(key_x, (len(VALID), TOKENS, config.d_model))
    integers, scale = quantise(rows.reshape(-1, config.d_model), 1)
    int8_rows = dequantise(integers, scale, 1).reshape(rows.shape)
    streams = {n: int8_rows if WAYS[n][0] == "int8" else rows for n in WAYS}
    streams[WHOLE_CHANNELS] = rows
    init = network(T5Block, config)[0]
    steps = {n: network(T5Block, way(config, n))[1] for n in WAYS}
    began = time.perf_counter()
    for layer in range(config.num_layers):
        block = jax.block_until_ready(init(keys[layer]))
        int8_block = jax.jit(rounded)(block)
        for n, step in steps.items():
            params = int8_block if WAYS[n][0] == "int8" else block
            if n == "bfloat16":
                params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
            streams[n] = jax.block_until_ready(step(params, streams[n], bias, mask_Bx1x1xL))
            del params
        block = jax.jit(rounded_in_channels)(block)
        x = steps["float32"](block, streams[WHOLE_CHANNELS], bias, mask_Bx1x1xL)
        streams[WHOLE_CHANNELS] = jax.block_until_ready(x)
        del block, int8_block
        worst = {
            n: cosines(np.asarray(x), np.asarray(streams["float32"])).min()
            for n, x in streams.items()
        }
        words = ", ".join(f"{n} {value:.6f}" for n, value in worst.items())
        print(f"layer {layer + 1}: {words}; {time.perf_counter() - began:.0f} s", flush=True)
    norm = RMSNorm(config.d_model, config.layer_norm_epsilon, rngs=nnx.Rngs(0))
    features = {n: np.asarray(norm(x)) for n, x in streams.items()}
    table = []
    for n in features:
        cosine = cosines(features[n], features["float32"])[np.asarray(mask)]
        row = {"weights": n, "cosine min": float(cosine.min()), "cosine mean": float(cosine.mean())}
        if n in WAYS:
            held = "bfloat16" if n == "bfloat16" else "float32"
            params_bytes, scratch = compiled_bytes(way(config, n), held)
            row |= {"parameters_GB": params_bytes / 1e9, "scratch_GB": scratch / 1e9}
        table.append(row)
    about = {
        "unit": "cosine similarity with float32 per token (no padding); GB",
        "network": f"{name}, random initial weights, seed {seed}",
        "tokens": f"{len(VALID)} x {TOKENS} random rows of the table, {VALID} of them attended to",
        "memory": "compiled for 1 x 300 tokens",
    }
    write("t5_int8_layers", table, about)


CHILD = """
import sys, time
import numpy as np
from pathlib import Path
from lit_jax.sampling.text_features import load_text_encoder

def mark():
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024

before, began = mark(), time.perf_counter()
encoder = load_text_encoder(sys.argv[1], sys.argv[2])
loaded, began = time.perf_counter() - began, time.perf_counter()
features, mask = encoder.features(["a photo of a red cube", "two dogs", ""], 120, 3)
np.save(sys.argv[3], features[mask == 1])
print(before, mark(), loaded, time.perf_counter() - began, encoder.identity.sha256)
"""


def tools(name: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = folder / "text_encoder"
        write_source(source, model_config(name), "transformers")
        sys.path.insert(0, str(ROOT / "tests"))
        from support.text_encoder_cases import sentencepiece_model

        (source / "spiece.model").write_bytes(sentencepiece_model())
        convert, quantize = (
            ROOT / "tools" / f for f in ("convert_torch_ckpt.py", "quantize_t5.py")
        )
        run(convert, "--src", source, "--dst", folder / "float32")
        run(convert, "--src", source, "--dst", folder / "bfloat16", "--dtype", "bfloat16")
        seconds, peak = run(quantize, "--src", folder / "float32", "--dst", folder / "int8")
        table: list[dict[str, Any]] = []
        features = []
        for n, (weights, dtype) in WAYS.items():
            model = folder / ("int8" if weights == "int8" else dtype)
            command = [sys.executable, "-c", CHILD, model, dtype, folder / "features.npy"]
            done = subprocess.run(
                list(map(str, command)), cwd=ROOT, check=True, capture_output=True, text=True
            )
            before, high, loaded, encoded, sha256 = done.stdout.split()
            features.append(np.load(folder / "features.npy"))
            cosine = cosines(features[-1], features[0])
            size = sum(f.stat().st_size for f in model.rglob("*") if f.is_file())
            table.append(
                {
                    "weights": n,
                    "cosine min": float(cosine.min()),
                    "cosine mean": float(cosine.mean()),
                    "disk_MB": size / 1e6,
                    "peak_MB": int(high) / 1e6,
                    "imports_MB": int(before) / 1e6,
                    "load_s": float(loaded),
                    "encode_s": float(encoded),
                    "sha256": sha256[:12],
                }
            )
        about = {
            "unit": "MB on disk; MB of the largest resident set, and before loading; seconds of one"
            " run, compilation included",
            "network": f"{name}, random weights of deviation 0.02",
            "quantise": {"seconds": seconds, "peak_MB": peak / 1e6},
        }
        write("t5_int8_tools", table, about)


def run(*command: Any) -> tuple[float, int]:
    """Seconds and peak memory of a program."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, high_water_mark(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
    return time.perf_counter() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["layers", "tools"], help="layers, tools")
    parser.add_argument("--model", help="default: T5-v1.1-XXL for layers, T5-v1.1-base for tools")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for part in args.parts:
        if part == "layers":
            layers(args.model or "T5-v1.1-XXL", args.seed)
        elif part == "tools":
            tools(args.model or "T5-v1.1-base")
        else:
            parser.error(f"unknown part {part!r}; known: layers, tools")


if __name__ == "__main__":
    main()
