"""Images of the generate job on disk: PNGs that say how they were made, and the pieces of work that
a killed job leaves for the next one.

Letters: H x W pixels, C channels (1 or 3).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from lit_jax.commands.generate.checks import INFORMATION, Plan
from lit_jax.runs.hosts import await_files
from lit_jax.runs.requests import REQUEST, differences, plain, require_same_request
from lit_jax.sampling.prompts import Prompt
from lit_jax.storage import files
from lit_jax.storage.png import grid_of
from lit_jax.version import VERSION

RECORD, WORK = "generate.json", "work"
PROMPT, SETTINGS = "prompt", "settings"
"""Text chunks of a PNG: what was drawn, and the JSON of how."""

REMEDY = "choose another --out, or remove it to draw again"


def write_image(
    path: Path, image_HxWxC: np.ndarray, prompt: str, settings: Mapping[str, Any]
) -> None:
    """A uint8 image [H, W, 1 or 3] as PNG, atomically, with prompt and settings in text chunks."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PROMPT, prompt)
    info.add_itxt(SETTINGS, json.dumps(settings))
    info.add_text("Software", f"lit_jax {VERSION}")
    array = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC
    with files.atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG", pnginfo=info)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings of a PNG that `write_image` wrote; None for any other file."""
    try:
        with Image.open(path) as image:
            image.load()
            settings = json.loads(image.text[SETTINGS])  # type: ignore[attr-defined]
    except (OSError, SyntaxError, AttributeError, KeyError, json.JSONDecodeError):
        return None
    return settings if isinstance(settings, dict) else None


def read_image(path: Path) -> np.ndarray:
    """Return uint8 [H, W, C] of a PNG."""
    with Image.open(path) as image:
        pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@dataclass(frozen=True)
class Output:
    """The files of a job. `request` defines an image besides its prompt and number; `of_folder` is
    the request of a folder of many prompts, None for one prompt, whose images carry theirs."""

    plan: Plan
    request: dict[str, Any]
    of_folder: dict[str, Any] | None

    def settings(self, prompt: Prompt, number: int | None) -> dict[str, Any]:
        """Return what the PNG of an image says about itself; None: the grid of all images."""
        which = {"images": len(prompt.images)} if number is None else {"image": number}
        return plain(self.request | which | {PROMPT: prompt.text})

    def present(self) -> set[str]:
        """Return the images that are there already.

        Raises ValueError when the place belongs to another request, or holds what none explains.
        """
        if self.of_folder is None:
            return self._present_files()
        out = self.plan.folder
        if not require_same_request(out / REQUEST, self.of_folder, REMEDY, INFORMATION):
            kept = sorted(path.name for path in out.iterdir()) if out.exists() else []
            if kept := [name for name in kept if not name.endswith(".tmp")]:
                raise ValueError(
                    f"{out} holds {kept[0]}, and no {REQUEST} that explains it; choose another"
                    " --out"
                )
        names = {name for prompt in self.plan.prompts for name in prompt.images}
        return {name for name in names if (out / name).exists()}

    def _present_files(self) -> set[str]:
        """Return as `present`, for the images of one prompt and their grid."""
        (prompt,) = self.plan.prompts
        wanted = {name: self.settings(prompt, k) for k, name in enumerate(prompt.images)}
        if prompt.grid:
            wanted[prompt.grid] = self.settings(prompt, None)
        present = set()
        for name, settings in wanted.items():
            path = self.plan.folder / name
            if not path.exists():
                continue
            stored = read_settings(path)
            why = ["it does not say how it was made"]
            if stored is not None:
                why = differences(stored, settings, INFORMATION)
            if not why:
                present.add(name)
            elif not self.plan.config.overwrite:
                raise ValueError(
                    f"{path} belongs to another request: {'; '.join(why)}; choose another --out,"
                    " or --overwrite it"
                )
        return present

    def finished(self, present: set[str]) -> bool:
        """Return whether nothing is left to do."""
        out, prompts = self.plan.folder, self.plan.prompts
        if self.of_folder is None:
            (prompt,) = prompts
            return present >= {*prompt.images} | ({prompt.grid} if prompt.grid else set())
        made = {RECORD} | {name for prompt in prompts for name in prompt.images}
        made |= {name for p in prompts for name in (p.grid, p.metadata_file) if name}
        return all((out / name).exists() for name in made)

    @property
    def work(self) -> Path:
        """Where pieces of unfinished work lie, removed at the end."""
        if self.of_folder is not None:
            return self.plan.folder / WORK
        out = Path(self.plan.config.out).expanduser()
        return out.with_name(f".{out.name}.{WORK}")

    def pieces(self) -> Pieces:
        """Return the pieces of this request: those of another one are none of ours."""
        text = json.dumps([self.request, [prompt.text for prompt in self.plan.prompts]])
        return Pieces(self.work / hashlib.sha256(text.encode()).hexdigest()[:16])

    def begin(self) -> None:
        """Remove what killed processes left half written, and log to whom a folder belongs. Call
        it on one process."""
        out = self.plan.folder
        if self.of_folder is None:
            (prompt,) = self.plan.prompts
            names = [glob.escape(name) for name in (*prompt.images, prompt.grid) if name]
            places = [out.glob(f".{name}.*.tmp") for name in names]
        else:
            places = [out.rglob(".*.tmp")]
        for path in (*itertools.chain(*places), *self.work.rglob(".*.tmp")):
            path.unlink(missing_ok=True)
        if self.of_folder is not None and not (out / REQUEST).exists():
            files.write_json(out / REQUEST, self.of_folder)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write what is made from the images, then the record that marks completion, then removes
        the pieces. Call it on one process."""
        out = self.plan.folder
        await_files([out / name for prompt in self.plan.prompts for name in prompt.images])
        for prompt in self.plan.prompts:
            if prompt.metadata_file:
                files.write_text(out / prompt.metadata_file, prompt.metadata + "\n")
            if prompt.grid:
                images_NxHxWxC = np.stack([read_image(out / name) for name in prompt.images])
                columns = math.ceil(math.sqrt(len(images_NxHxWxC)))
                grid = grid_of(images_NxHxWxC, columns)
                write_image(out / prompt.grid, grid, prompt.text, self.settings(prompt, None))
        if self.of_folder is not None:
            made = [{PROMPT: p.text, "images": list(p.images)} for p in self.plan.prompts]
            files.write_json(out / RECORD, self.of_folder | dict(record) | {"made": made})
        self.remove_pieces()

    def remove_pieces(self) -> None:
        """Remove what is left of the work on this request, and nothing else."""
        ours = self.work if self.of_folder is not None else self.pieces().folder
        shutil.rmtree(ours, ignore_errors=True)
        with contextlib.suppress(OSError):  # other work lies there
            self.work.rmdir()


@dataclass(frozen=True)
class Pieces:
    """Arrays of unfinished work, an `.npz` per piece."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def names(self, kind: str) -> list[str]:
        """Return the names of all pieces of a kind, the part before the slash."""
        return sorted(f"{kind}/{path.stem}" for path in (self.folder / kind).glob("*.npz"))

    def write(self, name: str, **arrays: np.ndarray) -> None:
        with files.atomic_path(self.path(name)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Raise ValueError for a damaged file."""
        path = self.path(name)
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); remove it and run the same command again"
            ) from error
