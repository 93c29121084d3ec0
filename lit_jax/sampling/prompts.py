"""Prompts and the names of their files: one prompt, a file of prompts, or GenEval.

A layout is a table of files; drawing knows nothing of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lit_jax.config.generate import GenerateConfig
from lit_jax.config.typed import require

GRID, METADATA, SAMPLES = "grid.png", "metadata.jsonl", "samples"


@dataclass(frozen=True)
class Prompt:
    """A text, the files its images go to, relative to the folder of the output, and what lies
    beside them: a grid of them (""  for none) and a line of metadata in a file of its own."""

    text: str
    images: tuple[str, ...]
    grid: str = ""
    metadata: str = ""
    metadata_file: str = ""


def read_prompts(config: GenerateConfig) -> tuple[Prompt, ...]:
    """Return the prompts of a job and their files. Raises ValueError for a file that cannot be
    read, holds no prompt, or a line that is none."""
    if config.prompt:
        return (_single(config.prompt.strip(), Path(config.out).name, config.num_images),)
    if config.geneval:
        return _geneval(Path(config.geneval), config.num_images)
    return _numbered(Path(config.prompt_file), config.num_images)


def folder_of(config: GenerateConfig) -> Path:
    """Return the folder that the names of files are relative to."""
    out = Path(config.out).expanduser()
    return out.parent if config.prompt else out


def _single(text: str, name: str, count: int) -> Prompt:
    """Return image.png; of several images the grid, beside image_0.png, image_1.png, ..."""
    if count == 1:
        return Prompt(text, (name,))
    stem, suffix = name[:-4], name[-4:]
    return Prompt(text, tuple(f"{stem}_{k}{suffix}" for k in range(count)), grid=name)


def _numbered(path: Path, count: int) -> tuple[Prompt, ...]:
    """Return one prompt per line: 00000.png, 00001.png, ...; of several images 00000_0.png, ..."""
    return tuple(
        Prompt(
            text,
            (f"{i:05d}.png",) if count == 1 else tuple(f"{i:05d}_{k}.png" for k in range(count)),
        )
        for i, text in enumerate(texts_of(path))
    )


def texts_of(path: Path) -> list[str]:
    """Return the prompts in a file: one per line, blank lines and # comments are none.

    Raises ValueError for a file that cannot be read or holds no prompt.
    """
    texts = [line.strip() for line in _lines(path)]
    texts = [text for text in texts if text and not text.startswith("#")]
    require(bool(texts), f"--prompt_file {path} holds no prompt; write one per line")
    return texts


def _geneval(path: Path, count: int) -> tuple[Prompt, ...]:
    """Return the tree that GenEval scores: 00000/metadata.jsonl, 00000/samples/0000.png,
    00000/grid.png.

    Source: Ghosh et al., "GenEval" (2023), section 4 and its published prompts.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        text = _prompt_of(path, number, line)
        place = f"{len(prompts):05d}"
        prompts.append(
            Prompt(
                text,
                tuple(f"{place}/{SAMPLES}/{k:04d}.png" for k in range(count)),
                f"{place}/{GRID}",
                line.strip(),
                f"{place}/{METADATA}",
            )
        )
    require(bool(prompts), f"--geneval {path} holds no prompt; give GenEval's metadata")
    return tuple(prompts)


def _prompt_of(path: Path, number: int, line: str) -> str:
    """Return the prompt in a line of GenEval's metadata."""
    where = f"line {number} of {path}"
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); it must be one object per line") from None
    prompt = content["prompt"] if isinstance(content, dict) and "prompt" in content else None
    require(
        isinstance(prompt, str) and bool(prompt.strip()),
        f'{where} has no "prompt"; every line must be an object with one, and not an empty text',
    )
    return str(prompt).strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as one") from error


def shortened(text: str) -> str:
    """Return a text in quotes, cut to 40 characters, for messages."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
