"""The models that the text-to-image demo ships, as model folders: `make t2i-models`.

    vae, text_encoder   diffusers and transformers layout, made by the programs beside this one
    teacher             a softmax PixArt, official layout
    lit                 the distilled student of `make demo-t2i`

A folder that is there already, made from the same file, is left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lit_jax.checkpoints.stored import CONFIG
from lit_jax.storage import files
from tools.convert_torch_ckpt import main as convert

HERE = Path(__file__).resolve().parent

SHIPPED = {
    "vae": HERE / "vae" / "diffusion_pytorch_model.safetensors",
    "text_encoder": HERE / "text_encoder" / "model.safetensors",
    "teacher": HERE / "teacher" / "shapes_pixart.safetensors",
    "lit": HERE / "lit" / "shapes_lit.safetensors",
}
"""Name -> weight file."""

DENOISERS = ("teacher", "lit")


def command(name: str, models: Path) -> list[str]:
    """Arguments of the converter for one model; a denoiser records its VAE and text encoder."""
    source = SHIPPED[name] if name in DENOISERS else SHIPPED[name].parent
    words = ["--src", str(source), "--dst", str((models / name).absolute())]
    if name in DENOISERS:
        for companion in ("vae", "text_encoder"):
            words += [f"--{companion}", str((models / companion).absolute())]
    return words


def prepare(name: str, models: Path) -> Path:
    """The model folder `models/name`, converted unless it is there.

    Raises ValueError when the folder was made from another file, or the conversion fails.
    """
    target = models / name
    if target.exists():
        made_from = json.loads((target / CONFIG).read_text())["provenance"]["sha256"]
        if made_from != files.sha256_file(SHIPPED[name]):
            raise ValueError(f"{target} was made from another {SHIPPED[name].name}; remove it")
        print(f"{target} is there already", flush=True)
        return target
    words = command(name, models)
    print("tools/convert_torch_ckpt.py", *words, flush=True)
    if convert(words):
        raise ValueError(f"the conversion of {SHIPPED[name]} failed")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="?", default=Path("runs/t2i-models"))
    parser.add_argument("--only", nargs="+", choices=tuple(SHIPPED), default=tuple(SHIPPED))
    args = parser.parse_args()
    try:
        for name in args.only:
            prepare(name, args.models)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
