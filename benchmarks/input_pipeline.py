"""How fast latents are read, next to a plain sequential read, and what a training step needs.

    python benchmarks/input_pipeline.py

Writes random moments of the real sizes (32 x 32 x 8 and 64 x 64 x 8, image and mirror image) to a
temporary folder, as the encode job writes them, and reads them with `make_train_iterator`:
shuffled, mirrored, in batches, in threads of the process (0 workers) and in 1 and 2 worker
processes. The columns take turns, so that a slow moment of a shared machine meets all of them.

- `sequential`: a peer, records in their order with ArrayRecord, neither parsed nor batched;
- `tfds`: shuffled, parsed by TFDS and batched, which is what a pipeline without our parser does;
- `core_us`: processor time per example with one worker, in microseconds, of the worker and of the
  process it feeds. A worker is a Python process and keeps about one core busy, so that 1e6 over
  this is what a worker reads on a core of its own, also when this machine has other work to do;
- `MB_per_s`: of records, at that speed.

Random normal numbers compress like latents do: hardly. Records lie in the page cache, so that the
numbers are those of the processor and not of a disk.

The second table is what an XL/2 step on 8 H200 consumes: examples per second at the data sheet's
989 TFLOP/s of dense bfloat16 per device, by `models.cost.train_step_flops`, and how many workers
read as fast. Writes `benchmarks/results/input_pipeline_<platform>.json` with both.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from timing import write

from lit_jax.data.latents.schema import LatentSchema, dataset_folder, write_schema
from lit_jax.data.latents.writer import LatentExample, record_file, write_metadata, write_records
from lit_jax.data.pipeline import make_train_iterator
from lit_jax.models import registry
from lit_jax.models.cost import train_step_flops

BATCH = 256
ROUNDS = 5
SECONDS = 2.0  # per measurement
READ_AHEAD = 32  # batches: more than any reader keeps ready while another one has its turn
NAME = "latents"

# Name, latent (h, w, L), dtype, examples: about 250 MB each.
CASES = (
    ("256 float32", (32, 32, 4), "float32", 4096),
    ("256 float16", (32, 32, 4), "float16", 8192),
    ("512 float32", (64, 64, 4), "float32", 1024),
    ("512 float16", (64, 64, 4), "float16", 2048),
)

DEVICES, PEAK_TFLOPS = 8, 989.0  # NVIDIA's data sheet of the H200: bfloat16, dense
SHARES = (1.0, 0.4)
CONSUMERS = (
    ("LiT-XL/2 from DiT-XL/2, 256", "LiT-XL/2", "DiT-XL/2", 32),
    ("LiT-S/2 from DiT-XL/2, 256", "LiT-S/2", "DiT-XL/2", 32),
    ("LiT-XL/2 from DiT-XL/2, 512", "LiT-XL/2", "DiT-XL/2", 64),
)


def write_latents(data_dir: Path, shape: tuple[int, int, int], dtype: str, count: int) -> None:
    """A data set of random moments, in four files."""
    height, width, channels = shape
    schema = LatentSchema(
        vae={},
        dtype=dtype,
        precision="highest",
        resolution=8 * height,
        latent_shape=shape,
        mirrors=True,
        count=count,
        skipped=0,
        classes=tuple(f"class {i}" for i in range(1000)),
        captions=(),
        text={},
        buckets=(),
        source={"split": "train"},
    )
    generator = np.random.default_rng(0)
    mean_and_log_variance = np.repeat([0.0, -14.0], channels), np.repeat([5.0, 2.0], channels)

    def examples(first: int) -> Iterator[LatentExample]:
        for index in range(first, first + count // 4):
            mean, std = mean_and_log_variance
            moments = mean + std * generator.standard_normal((2, height, width, 2 * channels))
            yield LatentExample(f"{index:08d}.JPEG", moments.astype(dtype), index % 1000)

    folder = data_dir / NAME
    for shard in range(4):
        path = record_file(folder, schema, shard, 4)
        write_records(path, schema, examples(shard * count // 4))
    write_metadata(folder, schema, [count // 4] * 4)
    write_schema(folder, schema)


@dataclass
class Reader:
    """An endless iterator over batches, and how to end it."""

    batches: Iterator[Any]
    close: Callable[[], None]

    def speed(self) -> tuple[float, float]:
        """Examples per second, and microseconds of processor time per example."""
        for _ in range(READ_AHEAD):
            next(self.batches)
        began, busy, count = time.perf_counter(), processor_seconds(), 0
        while (passed := time.perf_counter() - began) < SECONDS:
            next(self.batches)
            count += BATCH
        return count / passed, 1e6 * (processor_seconds() - busy) / count


def processor_seconds() -> float:
    """Of this process and its workers; those that wait for their turn use none."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def ours(data_dir: Path, workers: int) -> Reader:
    stream = make_train_iterator(NAME, data_dir, "train", BATCH, seed=0, flip=True, workers=workers)
    return Reader(stream, stream.close)


def sequential(data_dir: Path) -> Reader:
    files = sorted(map(str, dataset_folder(data_dir / NAME).glob("*.array_record-*")))

    def batches() -> Iterator[list[bytes]]:
        while True:
            for file in files:
                reader = ArrayRecordReader(file)
                with contextlib.closing(reader):
                    for _ in range(reader.num_records() // BATCH):
                        yield [reader.read() for _ in range(BATCH)]

    return Reader(batches(), lambda: None)


def by_tfds(data_dir: Path) -> Reader:
    source = tfds.builder_from_directory(dataset_folder(data_dir / NAME)).as_data_source("train")
    dataset = grain.MapDataset.source(source).shuffle(seed=0).repeat()
    batches = iter(dataset.batch(BATCH).to_iter_dataset(grain.ReadOptions(4, 16)))
    return Reader(batches, batches.close)


def throughput(shape: tuple[int, int, int], dtype: str, count: int) -> dict[str, Any]:
    """Examples per second of every reader: median of rounds in which they take turns."""
    kinds: dict[str, Callable[[Path], Reader]] = {
        "sequential": sequential,
        "tfds": by_tfds,
        "0 workers": lambda data_dir: ours(data_dir, 0),
        "1 worker": lambda data_dir: ours(data_dir, 1),
        "2 workers": lambda data_dir: ours(data_dir, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        write_latents(data_dir, shape, dtype, count)
        readers = {name: kind(data_dir) for name, kind in kinds.items()}
        rounds = [{name: r.speed() for name, r in readers.items()} for _ in range(ROUNDS)]
        for reader in readers.values():
            reader.close()
    found = {name: statistics.median(speeds[name][0] for speeds in rounds) for name in kinds}
    found["core_us"] = statistics.median(speeds["1 worker"][1] for speeds in rounds)
    record = 2 * int(np.prod(shape)) * 2 * np.dtype(dtype).itemsize
    return found | {"MB_per_s": record / found["core_us"]}


def consumption(core_us: dict[str, float]) -> list[dict[str, Any]]:
    """Examples per second of a step on 8 H200, and the workers they take with either dtype."""
    rows = []
    for name, student, teacher, side in CONSUMERS:
        size = {"input_size": side, "num_classes": 1000}
        flops = train_step_flops(
            registry.model_config(student, **size), 1, registry.model_config(teacher, **size)
        )
        for share in SHARES:
            wanted = share * DEVICES * PEAK_TFLOPS * 1e12 / flops
            row = {
                "step": name,
                "share_of_peak": share,
                "TFLOP_per_example": flops / 1e12,
                "examples_per_s": wanted,
            }
            for dtype in ("float32", "float16"):
                row[f"workers_{dtype}"] = wanted * core_us[f"{8 * side} {dtype}"] / 1e6
            rows.append(row)
    return rows


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, shape, dtype, count in CASES:
        rows.append({"records": name} | throughput(shape, dtype, count))
        print(rows[-1], flush=True)
    needs = consumption({row["records"]: row["core_us"] for row in rows})
    for row in needs:
        print({k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()})
    about = {
        "unit": f"examples per second in batches of {BATCH}, median of {ROUNDS} rounds",
        "devices": f"{DEVICES} x H200, {PEAK_TFLOPS} TFLOP/s bfloat16 each",
        "consumption": needs,
    }
    write("input_pipeline", rows, about)


if __name__ == "__main__":
    main()
