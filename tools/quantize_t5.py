"""Model folder of a T5 -> model folder of the same T5 with int8 matrices, a quarter of the bytes.

    quantize_t5.py --src models/t5 --dst models/t5_int8

Every matrix is rounded to int8 with a scale per output channel and 32 inputs (in the token table
per row and 32 columns); norms and position bias stay float32. The folder goes wherever the other
one went; features made with either belong to the same text encoder. User errors end with one
message on stderr and exit code 2, before anything is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, the package lies one folder up; rounding needs no accelerator.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from tqdm import tqdm

from lit_jax.checkpoints.quantise import float_folder, quantise_t5
from lit_jax.checkpoints.weight_files import new_parents
from lit_jax.checkpoints.writing import check_destination
from lit_jax.models.functional import abstract_params, count_params
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.runs.requests import require_space
from lit_jax.storage.staging import leftovers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--src", required=True, help="model folder of a T5 with float weights")
    parser.add_argument("--dst", required=True, help="model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    args = parser.parse_args(argv)
    try:
        quantise(args.src, args.dst, args.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def quantise(src: str, dst: str, overwrite: bool) -> None:
    """Write `dst` and says how much was rounded."""
    config: Any = float_folder(src).config
    check_destination(dst, overwrite)
    if Path(src).resolve() == Path(dst).resolve():
        raise ValueError(f"--dst {dst} is --src; the float weights would be lost")
    needed = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_params(dataclasses.replace(config, weights="int8")))
    )
    require_space(Path(dst), needed, "the int8 weights", "make room or choose another --dst")
    pace = 0.2 if sys.stderr.isatty() else 10.0
    total = count_params(abstract_params(config))
    with (
        new_parents(dst),
        tqdm(total=total, unit_scale=True, desc="quantising", mininterval=pace) as bar,
    ):
        errors = quantise_t5(src, dst, overwrite, lambda count: bar.update(count) and None)
    worst = max(errors, key=lambda path: errors[path])
    print(
        f"{len(errors)} matrices as int8, {folder_bytes(src):,} -> {folder_bytes(dst):,} bytes;"
        f" largest rounding error {errors[worst]:.2%} of a matrix ({worst})"
    )
    if not (Path(dst) / TOKENIZER_FILE).is_file():
        print(f"note: {src} has no {TOKENIZER_FILE}; copy it to both before they encode text")
    for folder in leftovers(dst):
        print(f"note: {folder} was left by a run that was killed; it can be deleted")
    print(f"wrote {dst}")


def folder_bytes(path: str) -> int:
    """Return bytes of all files below a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
