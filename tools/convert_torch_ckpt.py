r"""PyTorch checkpoint -> model folder, and back. The only program here that imports torch.

    convert_torch_ckpt.py --src DiT-XL-2-256x256.pt --dst models/dit_xl2 --model DiT-XL/2 --verify
    convert_torch_ckpt.py --src pipeline/vae --dst models/sdxl_vae
    convert_torch_ckpt.py --src pipeline/text_encoder --dst models/t5 --tokenizer spiece.model
    convert_torch_ckpt.py --src pixart.pth --dst models/pixart --vae models/sdxl_vae \
        --text_encoder models/t5
    convert_torch_ckpt.py --src small.safetensors --dst models/small --model DiT --set num_heads=4
    convert_torch_ckpt.py --export --src runs/lit --dst lit.safetensors --layout lit

torch is needed for .pt, .pth and .bin files and for --verify, never for .safetensors. A checkpoint
passes through tensor by tensor, so it may be larger than the memory. User errors end with one
message on stderr and exit code 2, before anything is written; a failed --verify with exit code 1,
nothing written either.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, the package lies one folder up; conversion needs no accelerator.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from tqdm import tqdm

from lit_jax.checkpoints.convert import Import, start_import
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.identity import FLOAT_SHA256, IDENTITY
from lit_jax.checkpoints.layouts import EXPORT_LAYOUTS, layout_of
from lit_jax.checkpoints.model_folder import ModelFolder, identity_entries
from lit_jax.checkpoints.pairing import StateDict
from lit_jax.checkpoints.safetensors_files import SAFETENSORS, SafetensorsReader
from lit_jax.checkpoints.stored import PARAMS
from lit_jax.checkpoints.streaming import UnreadLeaf, write_unread
from lit_jax.checkpoints.weight_files import (
    Reader,
    Source,
    cannot_write,
    fingerprint,
    join_shards,
    locate,
    new_parents,
    without_wrappers,
)
from lit_jax.checkpoints.writing import check_destination, staged_model_dir, write_config
from lit_jax.models.family import architecture
from lit_jax.models.registry import family_of
from lit_jax.storage.staging import leftovers
from tools.companions import copy_tokenizer, find_tokenizer, recorded_companions
from tools.export_checkpoint import export_checkpoint
from tools.settings import parse_settings
from tools.torch_files import TORCH, TorchReader, import_torch
from tools.verification import VerificationError, verify

DTYPES = ("float32", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.export:
            export_checkpoint(args)
        else:
            import_checkpoint(args)
    except VerificationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True)
class Checkpoint:
    """An opened source: its tensors by their own keys, what it says about itself."""

    source: Source
    state: StateDict
    stored: dict[str, Any]
    kind: str


def import_checkpoint(args: argparse.Namespace) -> None:
    """Torch, safetensors or Hugging Face files -> model folder."""
    if args.layout:
        raise ValueError("--layout belongs to --export; on import the keys tell the layout")
    source = locate(args.src, SAFETENSORS + TORCH)
    check_destination(args.dst, args.overwrite)
    if args.verify:
        import_torch("--verify")
    checkpoint = open_checkpoint(source, args.weights)
    state = checkpoint.state
    layout = layout_of(list(state))
    config = detect_config(
        state, args.model, parse_settings(args.set), checkpoint.stored, source.hub, layout
    )
    dtype = args.dtype or DTYPES[0]
    family = family_of(config).name
    if dtype != "float32" and family == "Inception":
        raise ValueError(f"--dtype {dtype}: rounded weights would change every score")
    work = start_import(state, config, layout)
    tokenizer = find_tokenizer(args, config)
    companions = recorded_companions(args, config)
    _check_space(Path(args.dst), work, dtype)
    with new_parents(args.dst), staged_model_dir(args.dst, args.overwrite) as staged:
        _write_parameters(work, staged, args.dst, dtype)
        provenance = fingerprint(source.files) | {
            "source": source.name,
            "weights": checkpoint.kind,
            "layout": layout.name,
            "dtype": dtype,
            "dropped": work.dropped,
            FLOAT_SHA256: work.sha256,
        }
        write_config(staged, config, provenance, companions)
        if family != "T5":  # which is known by the sum of its numbers before any rounding
            identity = {IDENTITY: identity_entries(ModelFolder(staged))}
            write_config(staged, config, provenance, companions | identity)
        notes = copy_tokenizer(tokenizer, staged) if family == "T5" else []
        if args.verify:
            verify(state, layout, staged, dtype)
    print(
        f"{work.used} keys used ({checkpoint.kind} weights), {work.parameters:,} parameters,"
        f" stored as {', '.join(sorted(work.dtypes))}, written as {dtype}"
    )
    for key, reason in _summary(work.dropped).items():
        print(f"dropped {key}: {reason}")
    print("model: " + " ".join(f"{k}={v}" for k, v in architecture(config).items()))
    print(f"sha256 of the source: {provenance['sha256']}")
    for note in work.notes + notes:
        print(f"note: {note}")
    for folder in leftovers(args.dst):
        print(f"note: {folder} was left by a conversion that was killed; it can be deleted")
    print(f"wrote {args.dst}")


def open_checkpoint(source: Source, weights: str | None) -> Checkpoint:
    """Return all tensors of the source's files, unread yet, without the prefixes of wrappers."""

    def open_file(path: Path) -> Reader:
        if path.suffix not in SAFETENSORS:
            return TorchReader(path, weights)
        if weights == "ema":
            raise ValueError(f"{path} holds one set of weights and no 'ema'; leave --weights out")
        return SafetensorsReader(path)

    tensors, readers = join_shards(source, open_file)
    if not tensors:
        raise ValueError(f"{source.name} holds no tensors")
    names = without_wrappers(tensors)
    state = {names[key]: tensor for key, tensor in tensors.items()}
    stored = getattr(readers[0], "stored", {})
    return Checkpoint(source, state, stored, getattr(readers[0], "kind", "model"))


def _write_parameters(work: Import, folder: Path, dst: str, dtype: str) -> None:
    """Stream all parameters into the folder, with a progress bar, and checks what was read.

    Raises ValueError for what cannot be read, and in one line, naming `dst`, when the disk refuses.
    """
    pace = 0.2 if sys.stderr.isatty() else 10.0
    unread: list[Exception] = []
    # Importing ml_dtypes (with jax) taught numpy the name "bfloat16".
    leaves = {path: _noting(leaf, unread) for path, leaf in work.unread(np.dtype(dtype)).items()}
    with tqdm(total=work.parameters, unit_scale=True, desc="converting", mininterval=pace) as bar:
        work.progress = lambda done, total: bar.update(done - bar.n) and None
        try:
            with _quiet_writer():
                write_unread(folder / PARAMS, leaves)
        except (ValueError, OSError, RuntimeError) as error:
            raise unread[0] if unread else cannot_write(dst, error) from error
    work.finish()


def _noting(leaf: UnreadLeaf, failures: list[Exception]) -> UnreadLeaf:
    """Return the leaf, which leaves in `failures` what made it unreadable: the writer that reads it
    must not be taken for the culprit."""

    def read() -> np.ndarray:
        try:
            return leaf.read()
        except Exception as error:
            failures.append(error)
            raise

    return replace(leaf, read=read)


@contextlib.contextmanager
def _quiet_writer() -> Iterator[None]:
    """Yield leaves an error of the writer to its caller: orbax logs the traceback as well, and
    every other write that is under way prints one when it finds the event loop closed."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    disabled = logger.disabled

    def without_closed_loops(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.disabled, sys.unraisablehook = True, without_closed_loops
    try:
        yield
        # Not after an error: the other writes end later.
        sys.unraisablehook = hook
    finally:
        logger.disabled = disabled


def _check_space(dst: Path, work: Import, dtype: str) -> None:
    """Raise ValueError when the disk cannot hold the parameters."""
    needed = work.parameters * np.dtype(dtype).itemsize
    parent = next(p for p in dst.absolute().parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(
            f"{parent} has {_bytes(free)} free; the parameters need {_bytes(needed)} in {dtype}."
            " Free some space, or choose another --dst"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _summary(dropped: Mapping[str, str]) -> dict[str, str]:
    """Return the dropped keys in few lines: one for every reason."""
    keys: dict[str, list[str]] = {}
    for key, reason in dropped.items():
        keys.setdefault(reason, []).append(key)
    return {
        names[0] if len(names) == 1 else f"{len(names)} keys ({names[0]}, ...)": reason
        for reason, names in keys.items()
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--src",
        required=True,
        help="checkpoint file, index of shards or their folder; with --export a model folder",
    )
    parser.add_argument(
        "--dst", required=True, help="model folder; with --export a file or (diffusers) a folder"
    )
    parser.add_argument("--model", help="named size (DiT-XL/2) or family (DiT, LiT, PixArt, ...)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="architecture fields that the file does not tell, e.g. num_heads=4",
    )
    parser.add_argument(
        "--weights", choices=("model", "ema"), help="default: what the official sampler loads"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the written numbers; default: float32")
    parser.add_argument(
        "--tokenizer", help="of a T5: spiece.model or its folder; default: found beside --src"
    )
    parser.add_argument("--vae", help="of a DiT or PixArt: model folder of its VAE, to be recorded")
    parser.add_argument(
        "--text_encoder", help="of a PixArt: model folder of its T5, to be recorded"
    )
    parser.add_argument("--verify", action="store_true", help="compare with a torch forward pass")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    parser.add_argument("--export", action="store_true", help="model folder -> PyTorch checkpoint")
    parser.add_argument("--layout", choices=EXPORT_LAYOUTS, help="key layout of --export")
    return parser


if __name__ == "__main__":
    sys.exit(main())
