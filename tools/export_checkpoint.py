"""Model folder -> file or folder in the layout of a PyTorch project."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.checkpoints.convert import export_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import EXPORT_LAYOUTS, HUB_LAYOUTS
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.pairing import layout_named, unwritten
from lit_jax.checkpoints.safetensors_files import SAFETENSORS, write_safetensors
from lit_jax.checkpoints.weight_files import cannot_write, new_parents
from lit_jax.checkpoints.writing import check_parents
from lit_jax.keymap.rows import Layout
from lit_jax.models.family import architecture
from lit_jax.models.functional import count_params
from lit_jax.models.registry import NetworkConfig, family_of
from lit_jax.storage.files import sha256_file, write_json
from lit_jax.storage.staging import staged_folder
from tools.settings import as_settings, parse_settings
from tools.torch_files import TORCH, write_torch


def export_checkpoint(args: argparse.Namespace) -> None:
    """Model folder or training workdir -> file or folder in the layout of a PyTorch project."""
    _check_flags(args)
    dst = Path(args.dst)
    _check_destination(dst, args.layout, args.overwrite)
    if not Path(args.src).exists():
        raise ValueError(f"no such model folder: {args.src}")
    folder = ModelFolder(args.src)
    _refuse_rounded(folder)
    config, params = folder.config, folder.params()
    layout = layout_named(config, args.layout)
    exported = family_of(config).as_written(config, unwritten(config, layout))
    state = export_params(params, config, layout)
    notes = export_notes(state, config, layout)
    with new_parents(dst):
        if args.layout in HUB_LAYOUTS:
            written = _write_hub_folder(dst, state, exported, args.overwrite)
        elif dst.suffix in SAFETENSORS:
            written = dst
            write_safetensors(dst, state, config)
        else:
            written = dst
            write_torch(dst, state)
            notes += torch_notes(state, exported, layout)
    print(f"{len(state)} keys, {count_params(params):,} parameters, layout {layout.name}")
    for note in notes:
        print(f"note: {note}")
    print(f"sha256: {sha256_file(written)}")
    print(f"wrote {dst}")


def _check_flags(args: argparse.Namespace) -> None:
    given = {"--model": args.model, "--set": args.set, "--weights": args.weights}
    given |= {f"--{name}": getattr(args, name) for name in ("tokenizer", "vae", "text_encoder")}
    if unused := [flag for flag, value in given.items() if value]:
        raise ValueError(f"{', '.join(unused)} belong(s) to import; the folder knows its model")
    if args.dtype:
        raise ValueError("--dtype belongs to import; an exported checkpoint is in float32")
    if args.verify:
        raise ValueError("--verify belongs to import; import the exported file with --verify")
    if not args.layout:
        raise ValueError(f"--export needs --layout ({' | '.join(EXPORT_LAYOUTS)})")


def _refuse_rounded(folder: ModelFolder) -> None:
    """Raise ValueError for int8 weights, before they are read."""
    weights = getattr(folder.config, "weights", "float")  # a field of T5
    if weights != "float":
        raise ValueError(
            f"{folder} holds {weights} weights, which no layout of PyTorch has here; export the"
            " folder with the float weights they were made from"
        )


def _check_destination(dst: Path, layout: str, overwrite: bool) -> None:
    """Raise ValueError unless the layout may be written there."""
    as_folder = layout in HUB_LAYOUTS
    if not as_folder and dst.is_dir():
        raise ValueError(f"--dst {dst} is a folder; layout {layout!r} is one file: name that file")
    if not as_folder and dst.suffix not in SAFETENSORS + TORCH:
        raise ValueError(f"--dst {dst} must end in {', '.join(SAFETENSORS + TORCH)}")
    if as_folder and dst.suffix in SAFETENSORS + TORCH:
        raise ValueError(f"--dst {dst} is a file; layout {layout!r} is a folder of files")
    if dst.exists() and not overwrite:
        raise ValueError(f"{dst} exists; pass --overwrite to replace it")
    check_parents(dst)


def _write_hub_folder(
    dst: Path, state: Mapping[str, np.ndarray], config: NetworkConfig, overwrite: bool
) -> Path:
    """Return config.json and the weight file, both or none; a folder is replaced only where these
    two files are. Returns the weight file."""
    hub = family_of(config).hub
    if hub is None:
        raise ValueError(f"neither diffusers nor transformers has a {config.family} network")
    content, name = hub(config)
    if dst.exists() and (not dst.is_dir() or set(os.listdir(dst)) - {"config.json", name}):
        raise ValueError(f"{dst} exists and is not an exported folder; choose another destination")
    with staged_folder(dst, overwrite) as staged:
        try:
            write_safetensors(staged / name, state, config)
            write_json(staged / "config.json", content, sort_keys=True)
        except (ValueError, OSError) as error:
            # The name of the staged file tells nothing.
            raise cannot_write(dst, error.__cause__ or error) from error
    return dst / name


def export_notes(
    state: Mapping[str, np.ndarray], config: NetworkConfig, layout: Layout
) -> list[str]:
    """Return what the reader of the exported file should know."""
    notes = []
    if missing := unwritten(config, layout):
        notes.append(f"layout {layout.name!r} has no place for {', '.join(missing)}; not written")
    if layout.config().family == "DiT" and layout.name == "diffusers":
        notes.append(
            "diffusers computes the timestep embedding of DiT with other frequencies than the"
            f" official model, so its outputs differ{_deviation(state, config)}"
        )
    return notes


def torch_notes(state: Mapping[str, Any], config: NetworkConfig, layout: Layout) -> list[str]:
    """Return what an import of the written torch file has to be told, if anything."""
    needed = needed_settings(state, config, layout)
    if not needed:
        return []
    words = " ".join(f"{key}={text}" for key, text in needed.items())
    flags = f"--model {config.family} --set {words}"
    return [f"a torch file carries no architecture; import it with {flags}"]


def needed_settings(
    state: Mapping[str, Any], config: NetworkConfig, layout: Layout
) -> dict[str, str]:
    """Return the settings without which a state dict is not read as `config`: all of its fields,
    less every one that changes nothing when it is left out."""
    wanted = architecture(config)

    def suffices(words: Mapping[str, str]) -> bool:
        said = parse_settings([[f"{key}={text}" for key, text in words.items()]])
        try:
            found = detect_config(state, config.family, said, layout=layout)
        except ValueError:
            return False
        return architecture(found) == wanted

    needed = as_settings({name: value for name, value in wanted.items() if name != "family"})
    for key in list(needed):
        rest = {other: text for other, text in needed.items() if other != key}
        if suffices(rest):
            needed = rest
    return needed


def _deviation(state: Mapping[str, np.ndarray], config: NetworkConfig) -> str:
    """Return by how much diffusers' output differs on these weights, measured where it is
    installed."""
    try:
        import torch

        from tools.torch_reference import diffusers_deviation

        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        value = diffusers_deviation(tensors, architecture(config))
    except (ImportError, ValueError):
        return " (0.2 relative is typical; with torch and diffusers installed it is measured here)"
    return f": by {value:.2g} relative on these weights, mostly at large timesteps"
