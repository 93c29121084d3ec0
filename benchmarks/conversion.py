"""Converting checkpoints of the real sizes: seconds and peak memory of the converter's process.

    python benchmarks/conversion.py [DiT-XL/2 PixArt-Sigma-XL/2 SDXL-VAE T5-v1.1-XXL]

Writes random weights in the layout in which they are released, converts them in a process of its
own and deletes both again. The peak is the largest resident set that the operating system saw; the
limit is the size of the source and 2 GB. T5-v1.1-XXL runs only when it is named: it needs 40 GB of
disk. Results: `benchmarks/results/conversion_<platform>.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from timing import write
from tqdm import tqdm

from lit_jax.checkpoints.convert import position_table
from lit_jax.checkpoints.pairing import layout_named, slots
from lit_jax.models.registry import NetworkConfig, family_of, model_config

TOOL = Path(__file__).resolve().parents[1] / "tools" / "convert_torch_ckpt.py"

# Name -> (layout, file or folder, the flags that a user needs).
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "DiT-XL/2": ("dit", "DiT-XL-2-256x256.pt", ()),
    "PixArt-Sigma-XL/2": ("pixart", "PixArt-Sigma-XL-2-512-MS.pth", ()),
    "SDXL-VAE": ("diffusers", "vae", ()),
    "T5-v1.1-XXL": ("transformers", "text_encoder", ()),
}
LARGE = ("T5-v1.1-XXL",)
SHARD_BYTES = 5 * 10**9


def tensors(config: NetworkConfig, layout: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every key of a released file with random float32 numbers."""
    rng = np.random.default_rng(0)
    found = layout_named(config, layout)
    if found.reason_to_drop("pos_embed"):
        yield "pos_embed", position_table(config)[None]
    expected = {k: s for k, s in slots(found, config).items() if not s.optional}
    for key, slot in tqdm(expected.items(), desc="random weights", mininterval=5):
        yield key, 0.02 * rng.standard_normal(slot.source_shape, dtype=np.float32)


def write_source(path: Path, config: NetworkConfig, layout: str) -> int:
    """A torch file, or a folder with config.json and shards; returns the bytes of its weights."""
    if path.suffix:
        import torch

        state = {key: torch.from_numpy(value) for key, value in tensors(config, layout)}
        torch.save({"state_dict": state} if path.suffix == ".pth" else state, path)
        return path.stat().st_size
    path.mkdir()
    content, name = family_of(config).hub(config)
    (path / "config.json").write_text(json.dumps(content))
    stem = name.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        file = f"{stem}-{len(set(weight_map.values())) + 1:05d}-of-00099.safetensors"
        save_file(shard, path / file)
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for key, value in tensors(config, layout):
        if sum(a.nbytes for a in shard.values()) + value.nbytes > SHARD_BYTES:
            flush()
        shard[key] = value
    flush()
    (path / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def high_water_mark(pid: int) -> int:
    """Largest resident set of a running process in bytes, mapped files included. (The figure that
    wait4 returns would begin with that of this process.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def measure(name: str, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One conversion in a process of its own."""
    layout, file, flags = CASES[name]
    config = model_config(name)
    source, target = folder / file, folder / "model"
    size = write_source(source, config, layout)
    command = [sys.executable, str(TOOL), "--src", str(source), "--dst", str(target)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *flags, *extra])
    peak = 0
    while process.poll() is None:
        peak = max(peak, high_water_mark(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{name}: the converter ended with status {process.returncode}")
    shutil.rmtree(target)
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    return {
        "model": name,
        "layout": layout,
        "source_GB": size / 1e9,
        "seconds": seconds,
        "peak_GB": peak / 1e9,
        "limit_GB": size / 1e9 + 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--dtype", default="float32", help="of the written parameters")
    parser.add_argument("--folder", help="where the files are for a while; default: TMPDIR")
    args = parser.parse_args()
    names = args.names or [name for name in CASES if name not in LARGE]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(CASES)}")
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows.append(measure(name, Path(folder), ["--dtype", args.dtype]))
        print(rows[-1], flush=True)
    suffix = "" if args.dtype == "float32" else f"_{args.dtype}"
    name = "conversion_large" if set(names) & set(LARGE) else "conversion"
    about = {"unit": "seconds of one run, peak resident GB", "written": args.dtype}
    write(f"{name}{suffix}", rows, about)


if __name__ == "__main__":
    main()
