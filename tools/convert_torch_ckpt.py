"""PyTorch checkpoint -> model folder, and back. The only program here that imports torch.

    convert_torch_ckpt.py --src DiT-XL-2-256x256.pt --dst models/dit_xl2 --model DiT-XL/2 --verify
    convert_torch_ckpt.py --src small.safetensors --dst models/small --model DiT --set num_heads=4
    convert_torch_ckpt.py --export --src runs/lit --dst lit.safetensors --layout lit

torch is needed for .pt, .pth and .bin files and for --verify, never for .safetensors. User errors
end with one message on stderr and exit code 2, before anything is written; a failed --verify with
exit code 1, nothing written either.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, the package lies one folder up; conversion needs no accelerator.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from lit_jax.config import DiTConfig, architecture
from lit_jax.models.zoo import Params, count_params
from lit_jax.weights.convert import StateDict, export_params, import_params
from lit_jax.weights.detect import detect_config
from lit_jax.weights.files import (
    only_weight_file,
    read_safetensors,
    sha256,
    write_safetensors,
)
from lit_jax.weights.folder import (
    check_destination,
    check_parents,
    load_model_dir,
    save_model_dir,
)
from lit_jax.weights.tables import LAYOUTS, MIXER_LAYOUTS

SAFETENSORS, TORCH = (".safetensors",), (".pt", ".pth", ".bin")

VERIFY_TOLERANCE = 2e-5
"""Largest accepted difference between torch and flax, relative to the largest output."""


class VerificationError(Exception):
    """The converted model computes something else than the checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(arguments)
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


def import_checkpoint(args: argparse.Namespace) -> None:
    """Torch or safetensors file -> model folder."""
    if args.layout:
        raise ValueError("--layout belongs to --export; on import the keys tell the layout")
    src = _source_file(args.src)
    check_destination(args.dst, args.overwrite)
    if args.verify:
        _import_torch("--verify")
    state, stored, kind = read_checkpoint(src, args.weights)
    config = detect_config(state, args.model, parse_settings(args.set), stored)
    params, report = import_params(state, config, _progress)
    if args.verify:
        verify(state, config, params)
    provenance = {
        "source": src.name,
        "sha256": sha256(src),
        "weights": kind,
        "layout": MIXER_LAYOUTS[config.mixer],
        "dropped": report.dropped,
    }
    save_model_dir(args.dst, config, params, provenance, args.overwrite)
    print(f"{report.used} keys used ({kind} weights), {report.parameters:,} parameters")
    for key, reason in report.dropped.items():
        print(f"dropped {key}: {reason}")
    print("model: " + " ".join(f"{k}={v}" for k, v in architecture(config).items()))
    print(f"sha256 of the source: {provenance['sha256']}")
    print(f"wrote {args.dst}")


def export_checkpoint(args: argparse.Namespace) -> None:
    """Model folder or training workdir -> torch or safetensors file in an official layout."""
    given = {"--model": args.model, "--set": args.set, "--weights": args.weights}
    if unused := [flag for flag, value in given.items() if value]:
        raise ValueError(f"{', '.join(unused)} belong(s) to import; the folder knows its model")
    if args.verify:
        raise ValueError("--verify belongs to import; import the exported file with --verify")
    if not args.layout:
        raise ValueError(f"--export needs --layout ({' | '.join(LAYOUTS)})")
    dst = Path(args.dst)
    if dst.suffix not in SAFETENSORS + TORCH:
        raise ValueError(f"--dst {dst} must end in {', '.join(SAFETENSORS + TORCH)}")
    if dst.is_dir() or (dst.exists() and not args.overwrite):
        raise ValueError(f"{dst} exists; pass --overwrite to replace it")
    check_parents(dst)
    if not Path(args.src).exists():
        raise ValueError(f"no such model folder: {args.src}")
    config, params = load_model_dir(args.src)
    state = export_params(params, config, args.layout)
    dst.parent.mkdir(parents=True, exist_ok=True)
    if dst.suffix in SAFETENSORS:
        write_safetensors(dst, state, config)
    else:
        _write_torch(dst, state)
    print(f"{len(state)} keys, {count_params(params):,} parameters, layout {args.layout}")
    print(f"sha256: {sha256(dst)}")
    print(f"wrote {dst}")


def read_checkpoint(path: Path, weights: str | None) -> tuple[StateDict, dict[str, Any], str]:
    """State dict, stored architecture ({} if none), and which weights these are."""
    if path.suffix in SAFETENSORS:
        content, stored = read_safetensors(path)
    else:
        content, stored = _read_torch(path), {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is a {type(content).__name__}, not a dict of tensors")
    sets = [name for name in ("ema", "model") if isinstance(content.get(name), Mapping)]
    if not sets:
        if weights == "ema":
            raise ValueError(f"{path} holds one set of weights and no 'ema'; leave --weights out")
        return _as_arrays(path, content), stored, "model"
    kind = weights or sets[0]
    if kind not in sets:
        raise ValueError(f"{path} has no {kind!r} weights; it has {', '.join(sets)}")
    return _as_arrays(path, content[kind]), stored, kind


def verify(state: StateDict, config: DiTConfig, params: Params) -> None:
    """Runs the torch reference on the checkpoint and the flax model on `params`, same inputs.

    Prints max |difference| per output. Raises VerificationError above VERIFY_TOLERANCE.
    """
    torch = _import_torch("--verify")
    import jax

    from lit_jax.models.zoo import apply_fn
    from tools.torch_reference import forward

    rng = np.random.default_rng(0)
    batch = 3
    x = rng.standard_normal((batch, config.in_channels, *config.image_size)).astype(np.float32)
    t = np.array([0.0, 417.5, 999.0], np.float32)
    # The last row of the label table is the null class where there is one.
    last = config.num_classes - (config.null_label is None)
    y = np.array([0, last // 2, last]) if config.num_classes else None
    weights = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in state.items()}
    with torch.inference_mode():
        labels = None if y is None else torch.from_numpy(y)
        expected = forward(
            weights, architecture(config), torch.from_numpy(x), torch.from_numpy(t), labels
        ).numpy()
    with jax.default_matmul_precision("highest"):
        got = jax.jit(apply_fn(config))(params, x.transpose(0, 2, 3, 1), t, y)
    got = np.asarray(got).transpose(0, 3, 1, 2)
    limit = VERIFY_TOLERANCE * float(np.abs(expected).max())
    C = config.in_channels
    worst = 0.0
    for name, channels in (("noise", slice(0, C)), ("variance", slice(C, 2 * C))):
        if got[:, channels].size:
            difference = float(np.abs(got[:, channels] - expected[:, channels]).max())
            worst = max(worst, difference)
            print(f"verify {name}: max |difference| {difference:.3g} (limit {limit:.3g})")
    if not worst <= limit:
        raise VerificationError(
            f"flax and torch outputs differ by {worst:.3g}, limit {limit:.3g}; nothing was written"
        )


def parse_settings(settings: Sequence[Sequence[str]]) -> dict[str, Any]:
    """`--set key=value` groups as typed values: none, true, false, numbers, HEIGHTxWIDTH, words."""
    values: dict[str, Any] = {}
    for setting in (word for group in settings for word in group):
        key, separator, text = setting.partition("=")
        if not separator or not key or not text:
            raise ValueError(f"--set {setting!r} is not of the form key=value")
        values[key] = _value(text)
    return values


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if text.count("x") == 1 and text.replace("x", "").isdigit() and "x" not in (text[0], text[-1]):
        height, width = text.split("x")
        return int(height), int(width)
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _source_file(src: str) -> Path:
    path = Path(src)
    if path.is_dir():
        return only_weight_file(path, SAFETENSORS + TORCH)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    if path.suffix not in SAFETENSORS + TORCH:
        raise ValueError(f"--src {path} must end in {', '.join(SAFETENSORS + TORCH)}")
    return path


def _import_torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{purpose} needs torch: pip install 'lit_jax[convert]' (.safetensors files do not)"
        ) from None
    return torch


def _read_torch(path: Path) -> Any:
    """The content of a torch file, without running code from it; arguments of train.py allowed."""
    torch = _import_torch(f"a {path.suffix} file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}). Files that need other Python"
            " objects to unpickle are refused, since unpickling runs code; save the state dict"
            " alone: torch.save(model.state_dict(), FILE)"
        ) from error


def _as_arrays(path: Path, content: Any) -> dict[str, Any]:
    """Torch tensors as float arrays (views where possible); what has a shape already stays."""
    result = {}
    for key, value in content.items():
        if not hasattr(value, "shape"):
            raise ValueError(f"{path}: entry {key!r} is {type(value).__name__}, not a tensor")
        if hasattr(value, "detach"):
            value = value.detach()
            # numpy has no bfloat16 of its own.
            value = (value.float() if value.is_floating_point() else value).numpy()
        result[key] = value
    return result


def _write_torch(path: Path, state: Mapping[str, np.ndarray]) -> None:
    torch = _import_torch(f"a {path.suffix} file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _progress(done: int, total: int) -> None:
    if done == total or done % 50 == 0:
        print(f"{done}/{total} tensors", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--src", required=True, help="checkpoint file or its folder; with --export a model folder"
    )
    parser.add_argument("--dst", required=True, help="model folder; with --export a file")
    parser.add_argument("--model", help="named size (DiT-XL/2) or family (DiT, LiT)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="architecture fields that the file does not tell, e.g. num_heads=4",
    )
    parser.add_argument("--weights", choices=("model", "ema"), help="default: ema where present")
    parser.add_argument("--verify", action="store_true", help="compare with a torch forward pass")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    parser.add_argument("--export", action="store_true", help="model folder -> checkpoint file")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help="key layout of --export")
    return parser


if __name__ == "__main__":
    sys.exit(main())
