"""The encode job: decoding and cropping by threads, and the whole job, against a plain loop.

    python benchmarks/encode.py

Images are JPEGs of 500 x 375 pixels, as most of ImageNet, drawn at random, cropped to 256 x 256.

crop:  `jobs.encode_shards.prepare` with 1, 2 and 4 threads; the peer is a loop over Pillow's own
       calls, one image after the other.
job:   `encode` from the folder to finished records, without mirrors, with a VAE as small as it can
       be; the peer is the same loop, then the same compiled VAE, then `numpy.save`, with nothing
       at the same time as anything else. The job also hashes the VAE, lists the folder and loads
       its program from the compilation cache.

Wall time: images per second, the two in turns within one run. CPU time, which a busy machine
changes less: milliseconds of all threads per image. Writes
`benchmarks/results/encode_<platform>.json`.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL
from PIL import Image
from timing import compare, write

from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.encode.job import encode
from lit_jax.commands.encode.shards import Encoder, in_order, make_encoder, prepare
from lit_jax.config import EncodeConfig, SourceConfig
from lit_jax.data.crop import center_crop
from lit_jax.data.registry import open_source
from lit_jax.data.sources.image_source import ImageSource
from lit_jax.models import functional, registry

COUNT, SIZE, BATCH = 96, 256, 16
WIDTH, HEIGHT = 500, 375
THREADS, JOB_THREADS = (1, 2, 4), (1, 2)
ROUNDS = 5


def make_images(folder: Path) -> float:
    """JPEGs with edges and noise; returns their mean size in KB."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 40
    for index in range(COUNT):
        waves = [np.sin(x * rng.uniform(0.2, 3) + y * rng.uniform(0.2, 3)) for _ in range(3)]
        pixels = 127 + 90 * np.sign(np.stack(waves, -1)) * rng.uniform(0.3, 1, 3)
        pixels += rng.normal(0, 12, pixels.shape)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{index:04d}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir()) / COUNT / 1e3


def make_vae(folder: Path) -> None:
    config = registry.model_config(
        "AutoencoderKL",
        block_out_channels=(2, 2, 2, 2),
        layers_per_block=1,
        norm_num_groups=1,
    )
    params = jax.jit(functools.partial(functional.init_params, config))(jax.random.key(0))
    save_model_dir(folder, config, params, {"source": "random"})


def plain_crop(path: Path) -> np.ndarray:
    """The ADM crop, Pillow's calls in a row."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    while min(image.size) >= 2 * SIZE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIZE / min(image.size)
    sides = round(image.width * scale), round(image.height * scale)
    pixels = np.array(image.resize(sides, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - SIZE) // 2, (pixels.shape[1] - SIZE) // 2
    return pixels[top : top + SIZE, left : left + SIZE]


def plain_loop(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        plain_crop(path)


def threads_crop(source: ImageSource, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        work = functools.partial(prepare, source, center_crop, SIZE)
        for _ in in_order(pool, work, range(len(source)), ahead=2 * BATCH):
            pass


def plain_job(folder: Path, encode_batch: Encoder, out: Path) -> None:
    paths = sorted(folder.iterdir())
    found = []
    for first in range(0, len(paths), BATCH):
        pixels = np.stack([plain_crop(path) for path in paths[first : first + BATCH]])
        found.append(np.asarray(encode_batch(pixels)))
    np.save(out, np.concatenate(found))


def whole_job(config: EncodeConfig, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    encode(config, out, lambda _: None)


def measure(what: str, threads: int, **functions: Callable[[], None]) -> dict[str, Any]:
    """A row of the table. `functions` process all images once."""
    times = compare(functions, rounds=ROUNDS)
    row: dict[str, Any] = {"what": what, "threads": str(threads)}
    row |= {f"{name}/s": COUNT / milliseconds * 1e3 for name, milliseconds in times.items()}
    for name, function in functions.items():
        began = time.process_time()
        function()
        row[f"{name} cpu"] = (time.process_time() - began) / COUNT * 1e3
    return row | {"ratio": row["ours/s"] / row["plain/s"]}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        jax.config.update("jax_compilation_cache_dir", str(root / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        kilobytes = make_images(root / "images")
        make_vae(root / "vae")
        where = SourceConfig(kind="folder", path=str(root / "images"))
        source = open_source(where)
        assert np.array_equal(
            prepare(source, center_crop, SIZE, 3).pixels_HxWx3,  # type: ignore[union-attr]
            plain_crop(root / "images/0003.jpg"),
        )
        plain = functools.partial(plain_loop, root / "images")
        for threads in THREADS:
            ours = functools.partial(threads_crop, source, threads)
            rows.append(measure("crop", threads, plain=plain, ours=ours))

        folder = ModelFolder(root / "vae")
        vae, params = folder.config, folder.params()
        encode_batch, _ = make_encoder(
            vae,  # type: ignore[arg-type]
            params,
            mirrors=False,
            precision="highest",
            device_batch_size=BATCH // jax.local_device_count(),
        )
        plain = functools.partial(plain_job, root / "images", encode_batch, root / "plain.npy")
        for threads in JOB_THREADS:
            config = EncodeConfig(
                vae=str(root / "vae"),
                source=where,
                resolution=SIZE,
                mirrors=False,
                device_batch_size=BATCH // jax.local_device_count(),
                workers=threads,
            )
            ours = functools.partial(whole_job, config, root / "out")
            rows.append(measure("job", threads, plain=plain, ours=ours))
    about = {
        "unit": "images per second, median of alternating runs; CPU milliseconds per image",
        "ratio": "ours / plain",
        "images": f"{COUNT} JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} KB each, to {SIZE}",
        "cores": os.cpu_count(),
        "pillow": PIL.__version__,
    }
    write("encode", rows, about)


if __name__ == "__main__":
    main()
