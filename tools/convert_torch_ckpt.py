"""PyTorch checkpoint -> model folder, and back. The only program here that imports torch.

    convert_torch_ckpt.py --src DiT-XL-2-256x256.pt --dst models/dit_xl2 --model DiT-XL/2 --verify
    convert_torch_ckpt.py --src pipeline/vae --dst models/sdxl_vae
    convert_torch_ckpt.py --src small.safetensors --dst models/small --model DiT --set num_heads=4
    convert_torch_ckpt.py --export --src runs/lit --dst lit.safetensors --layout lit

torch is needed for .pt, .pth and .bin files and for --verify, never for .safetensors. A checkpoint
passes through tensor by tensor, so it may be larger than the memory. User errors end with one
message on stderr and exit code 2, before anything is written; a failed --verify with exit code 1,
nothing written either.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, the package lies one folder up; conversion needs no accelerator.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from tqdm import tqdm

from lit_jax.config import InceptionConfig, NetworkConfig, architecture
from lit_jax.models.zoo import count_params
from lit_jax.weights.convert import Import, export_params, start_import
from lit_jax.weights.detect import detect_config
from lit_jax.weights.files import (
    SAFETENSORS,
    Reader,
    SafetensorsReader,
    Source,
    fingerprint,
    join_shards,
    locate,
    sha256,
    without_wrappers,
    write_json,
    write_safetensors,
)
from lit_jax.weights.folder import (
    PARAMS,
    check_destination,
    check_parents,
    leftovers,
    load_model_dir,
    staged_model_dir,
    write_config,
)
from lit_jax.weights.hub import as_written, hub_config
from lit_jax.weights.pairing import StateDict, layout_named, unwritten
from lit_jax.weights.streaming import write_unread
from lit_jax.weights.tables import EXPORT_LAYOUTS, HUB_LAYOUTS, Layout, layout_of
from tools.torch_files import TORCH, TorchReader, import_torch, write_torch
from tools.verification import VerificationError, verify

DTYPES = ("float32", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
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
    if args.dtype != "float32" and isinstance(config, InceptionConfig):
        raise ValueError(f"--dtype {args.dtype}: rounded weights would change every score")
    work = start_import(state, config, layout)
    _check_space(Path(args.dst), work, args.dtype)
    with staged_model_dir(args.dst, args.overwrite) as staged:
        _write_parameters(work, staged, args.dtype)
        provenance = fingerprint(source.files) | {
            "source": source.name,
            "weights": checkpoint.kind,
            "layout": layout.name,
            "dtype": args.dtype,
            "dropped": work.dropped,
        }
        write_config(staged, config, provenance)
        if args.verify:
            verify(state, layout, staged, args.dtype)
    print(
        f"{work.used} keys used ({checkpoint.kind} weights), {work.parameters:,} parameters,"
        f" stored as {', '.join(sorted(work.dtypes))}, written as {args.dtype}"
    )
    for key, reason in _summary(work.dropped).items():
        print(f"dropped {key}: {reason}")
    print("model: " + " ".join(f"{k}={v}" for k, v in architecture(config).items()))
    print(f"sha256 of the source: {provenance['sha256']}")
    for note in work.notes:
        print(f"note: {note}")
    for folder in leftovers(args.dst):
        print(f"note: {folder} was left by a conversion that was killed; it can be deleted")
    print(f"wrote {args.dst}")


def open_checkpoint(source: Source, weights: str | None) -> Checkpoint:
    """All tensors of the source's files, unread yet, without the prefixes of wrappers."""

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


def _write_parameters(work: Import, folder: Path, dtype: str) -> None:
    """Streams all parameters into the folder, with a progress bar, and checks what was read."""
    pace = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=work.parameters, unit_scale=True, desc="converting", mininterval=pace) as bar:
        work.progress = lambda done, total: bar.update(done - bar.n) and None
        # Importing ml_dtypes (with jax) taught numpy the name "bfloat16".
        write_unread(folder / PARAMS, work.unread(np.dtype(dtype)))
    work.finish()


def _check_space(dst: Path, work: Import, dtype: str) -> None:
    """Raises ValueError when the disk cannot hold the parameters."""
    needed = work.parameters * np.dtype(dtype).itemsize
    parent = next(p for p in dst.absolute().parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(
            f"{parent} has {free / 1e9:.1f} GB free; the parameters need {needed / 1e9:.1f} GB in"
            f" {dtype}. Free some space, or choose another --dst"
        )


def _summary(dropped: Mapping[str, str]) -> dict[str, str]:
    """The dropped keys in few lines: one for every reason."""
    keys: dict[str, list[str]] = {}
    for key, reason in dropped.items():
        keys.setdefault(reason, []).append(key)
    return {
        names[0] if len(names) == 1 else f"{len(names)} keys ({names[0]}, ...)": reason
        for reason, names in keys.items()
    }


def export_checkpoint(args: argparse.Namespace) -> None:
    """Model folder or training workdir -> file or folder in the layout of a PyTorch project."""
    given = {"--model": args.model, "--set": args.set, "--weights": args.weights}
    if unused := [flag for flag, value in given.items() if value]:
        raise ValueError(f"{', '.join(unused)} belong(s) to import; the folder knows its model")
    if args.verify:
        raise ValueError("--verify belongs to import; import the exported file with --verify")
    if not args.layout:
        raise ValueError(f"--export needs --layout ({' | '.join(EXPORT_LAYOUTS)})")
    dst = Path(args.dst)
    as_folder = args.layout in HUB_LAYOUTS
    if not as_folder and dst.suffix not in SAFETENSORS + TORCH:
        raise ValueError(f"--dst {dst} must end in {', '.join(SAFETENSORS + TORCH)}")
    if as_folder and dst.suffix in SAFETENSORS + TORCH:
        raise ValueError(f"--dst {dst} is a file; layout {args.layout!r} is a folder of files")
    if (dst.is_dir() and not as_folder) or (dst.exists() and not args.overwrite):
        raise ValueError(f"{dst} exists; pass --overwrite to replace it")
    check_parents(dst)
    if not Path(args.src).exists():
        raise ValueError(f"no such model folder: {args.src}")
    config, params = load_model_dir(args.src)
    layout = layout_named(config, args.layout)
    state = export_params(params, config, layout)
    dst.parent.mkdir(parents=True, exist_ok=True)
    if as_folder:
        written = _write_hub_folder(dst, state, as_written(config, layout))
    else:
        written = dst
        if dst.suffix in SAFETENSORS:
            write_safetensors(dst, state, config)
        else:
            write_torch(dst, state)
    print(f"{len(state)} keys, {count_params(params):,} parameters, layout {layout.name}")
    for note in export_notes(state, config, layout):
        print(f"note: {note}")
    print(f"sha256: {sha256(written)}")
    print(f"wrote {dst}")


def _write_hub_folder(dst: Path, state: Mapping[str, np.ndarray], config: NetworkConfig) -> Path:
    """config.json and the weight file; a folder is replaced only where these two files are."""
    content, name = hub_config(config)
    if dst.exists() and (not dst.is_dir() or set(os.listdir(dst)) - {"config.json", name}):
        raise ValueError(f"{dst} exists and is not an exported folder; choose another destination")
    dst.mkdir(exist_ok=True)
    write_safetensors(dst / name, state, config)
    write_json(dst / "config.json", content)
    return dst / name


def export_notes(
    state: Mapping[str, np.ndarray], config: NetworkConfig, layout: Layout
) -> list[str]:
    """What the reader of the exported file should know."""
    notes = []
    if missing := unwritten(config, layout):
        notes.append(f"layout {layout.name!r} has no place for {', '.join(missing)}; not written")
    if layout.config().family == "DiT" and layout.name == "diffusers":
        notes.append(
            "diffusers computes the timestep embedding of DiT with other frequencies than the"
            f" official model, so its outputs differ{_deviation(state, config)}"
        )
    return notes


def _deviation(state: Mapping[str, np.ndarray], config: NetworkConfig) -> str:
    """By how much diffusers' output differs on these weights, measured where it is installed."""
    try:
        import torch

        from tools.torch_reference import diffusers_deviation

        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        value = diffusers_deviation(tensors, architecture(config))
    except (ImportError, ValueError):
        return " (0.2 relative is typical; with torch and diffusers installed it is measured here)"
    return f": by {value:.2g} relative on these weights, mostly at large timesteps"


def parse_settings(settings: Sequence[Sequence[str]]) -> dict[str, Any]:
    """`--set key=value` groups as typed values: none, true, false, numbers, HEIGHTxWIDTH, lists of
    integers (1,2,3) and words. `group.key=value` sets one key of a group."""
    values: dict[str, Any] = {}
    for setting in (word for group in settings for word in group):
        key, separator, text = setting.partition("=")
        if not separator or not key or not text:
            raise ValueError(f"--set {setting!r} is not of the form key=value")
        *groups, last = key.split(".")
        place = values
        for name in groups:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting!r}: {name} is a value already, not a group")
        place[last] = _value(text)
    return values


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if text.count("x") == 1 and text.replace("x", "").isdigit() and "x" not in (text[0], text[-1]):
        height, width = text.split("x")
        return int(height), int(width)
    if re.fullmatch(r"\d+(,\d+)*,?", text) and "," in text:
        return [int(number) for number in text.split(",") if number]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


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
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the written numbers")
    parser.add_argument("--verify", action="store_true", help="compare with a torch forward pass")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    parser.add_argument("--export", action="store_true", help="model folder -> PyTorch checkpoint")
    parser.add_argument("--layout", choices=EXPORT_LAYOUTS, help="key layout of --export")
    return parser


if __name__ == "__main__":
    sys.exit(main())
