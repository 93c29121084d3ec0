"""Images of a generate job on disk: PNG files that carry their settings.

Letters: H x W pixels, C channels (1 or 3).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from lit_jax.commands.generate.checks import INFORMATION, Plan
from lit_jax.runs.hosts import Log, await_files
from lit_jax.runs.output import Output, remove_leftovers
from lit_jax.runs.requests import differences, plain
from lit_jax.sampling.prompts import Prompt
from lit_jax.storage import files
from lit_jax.storage.png import grid_of
from lit_jax.version import VERSION

RECORD, WORK = "generate.json", "work"
PROMPT, SETTINGS = "prompt", "settings"
"""Text chunks of a PNG: the prompt, and the settings as JSON."""


def write_image(
    path: Path, image_HxWxC: np.ndarray, prompt: str, settings: Mapping[str, Any]
) -> None:
    """Write a uint8 image [H, W, 1 or 3] as PNG, atomically, with prompt and settings in text
    chunks."""
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
class Pictures:
    """The files of a job. `request` defines an image besides its prompt and number; `of_folder` is
    the request of a folder of many prompts, None for one prompt, whose images carry theirs."""

    plan: Plan
    request: dict[str, Any]
    of_folder: dict[str, Any] | None

    def settings(self, prompt: Prompt, number: int | None) -> dict[str, Any]:
        """Return the settings in the PNG of an image; None: of the grid of all images."""
        which = {"images": len(prompt.images)} if number is None else {"image": number}
        return plain(self.request | which | {PROMPT: prompt.text})

    def open(self, log: Log) -> Output:
        """Open the output, or for one prompt the work folder beside its PNG, which belongs to this
        request alone."""
        texts = [prompt.text for prompt in self.plan.prompts]
        text = json.dumps([self.request, texts])
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.of_folder is not None:
            return Output.open(
                self.plan.folder,
                self.of_folder,
                RECORD,
                f"{WORK}/{name}",
                ignore=INFORMATION,
                log=log,
            )
        request = plain(self.request | {"prompts": texts})
        out = Path(self.plan.config.out).expanduser()
        place = out.with_name(f".{out.name}.{WORK}") / name
        return Output.open(place, request, RECORD, log=log)

    def present(self) -> set[str]:
        """Return the images that exist already. Raises ValueError for the PNG of another
        request."""
        if self.of_folder is None:
            return self._present_files()
        names = {name for prompt in self.plan.prompts for name in prompt.images}
        return {name for name in names if (self.plan.folder / name).exists()}

    def _present_files(self) -> set[str]:
        (prompt,) = self.plan.prompts
        expected = {name: self.settings(prompt, k) for k, name in enumerate(prompt.images)}
        if prompt.grid:
            expected[prompt.grid] = self.settings(prompt, None)
        present = set()
        for name, settings in expected.items():
            path = self.plan.folder / name
            if not path.exists():
                continue
            stored = read_settings(path)
            why = ["it records no settings"]
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
        """Return True when nothing is left to do."""
        out, prompts = self.plan.folder, self.plan.prompts
        if self.of_folder is None:
            (prompt,) = prompts
            return present >= {*prompt.images} | ({prompt.grid} if prompt.grid else set())
        made = {RECORD} | {name for prompt in prompts for name in prompt.images}
        made |= {name for p in prompts for name in (p.grid, p.metadata_file) if name}
        return all((out / name).exists() for name in made)

    def remove_leftovers(self, output: Output) -> None:
        """Remove images that a killed process left half written beside the PNG of one prompt."""
        if self.of_folder is None:
            (prompt,) = self.plan.prompts
            names = (*prompt.images, prompt.grid)
            remove_leftovers(output.home, *(self.plan.folder / name for name in names if name))

    def finish(self) -> list[dict[str, Any]]:
        """Write the grids and metadata that follow from the images; return prompts and files for
        the record. Call it on one process."""
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
        return [{PROMPT: p.text, "images": list(p.images)} for p in self.plan.prompts]

    def remove_work(self, output: Output) -> None:
        """Remove the work folder of one prompt, which nobody needs beside its PNG. On one
        process."""
        if self.of_folder is None:
            output.release()
            shutil.rmtree(output.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # other work lies there
                output.path.parent.rmdir()
