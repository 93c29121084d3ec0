"""Text to image from data to score, on a CPU, in minutes: `make demo-t2i`.

Coloured shapes are rendered and encoded with their captions; a trained softmax PixArt comes in as
a checkpoint of the official layout; three linear students are trained from it for the same number
of steps; all four models draw the same prompts, in GenEval's categories, and are scored. Uses the
public commands and jobs only, prints each of them, and resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(ROOT))

from absl import logging

from demo.t2i import detector, models, prompts, report, shapes
from demo.training_runs import draw_losses, train_to_the_end, training_effort
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.commands.encode.job import encode
from lit_jax.commands.generate.job import generate
from lit_jax.config import EncodeConfig, TrainConfig, from_mapping
from lit_jax.config.generate import GenerateConfig
from lit_jax.config.protocol import CAPTIONS
from lit_jax.models.cost import attention_macs
from lit_jax.models.functional import abstract_params, count_params
from lit_jax.runs.progress import duration
from lit_jax.storage import files

STUDENTS = ("distilled", "inherited", "scratch")
IMAGES = 10_000
PER_PROMPT = 4
GUIDANCE = 4.5
STEPS = "20"
BATCH = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo-t2i", help="folder of the results")
    parser.add_argument("--models", default="runs/t2i-models", help="folder of the shipped models")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and sampling")
    parser.add_argument("--steps", type=int, help="training steps per student (default: config)")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images")
    parser.add_argument(
        "--per_tag", type=int, default=prompts.PER_TAG, help="prompts per category at most"
    )
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    try:
        run(Path(args.out), Path(args.models), args.seed, args.steps, args.images, args.per_tag)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def run(out: Path, model_dir: Path, seed: int, steps: int | None, count: int, per_tag: int) -> None:
    """The six steps of the demo; what an earlier call has finished is not done again."""
    began = time.perf_counter()
    render(out, count)
    shipped = prepare_models(model_dir)
    encode_data(out, shipped)
    denoisers = {"teacher": shipped["teacher"]}
    for recipe in STUDENTS:
        denoisers[f"lit_{recipe}"] = train_student(recipe, out, shipped, seed, steps)
    samples = draw(out, denoisers, shipped, seed, per_tag)
    rows = score(out, denoisers, samples, seed)

    print("\n" + "\n".join(report.table(rows)))
    print(f"\nwrote {out}/report.md, report.json, samples.png, losses.png")
    print(f"whole demo: {duration(time.perf_counter() - began)}")


def heading(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def render(out: Path, count: int) -> None:
    """Step 1: images with two captions each."""
    target = out / "images"
    heading(f"1/6 images: python -m demo.t2i.shapes {target} --count {count}")
    shapes.write_folder(target, count, seed=0)
    print(f"{count} images with two captions each in {target}")


def prepare_models(model_dir: Path) -> dict[str, Path]:
    """Step 2: the shipped VAE, text encoder and softmax teacher, as model folders."""
    names = ("vae", "text_encoder", "teacher")
    heading(f"2/6 models: python -m demo.t2i.models {model_dir} --only {' '.join(names)}")
    return {name: models.prepare(name, model_dir) for name in names}


def encode_data(out: Path, shipped: dict[str, Path]) -> None:
    """Step 3: moments of the VAE and features of the text encoder, once for all of training."""
    changed = {
        "source.path": str(out / "images"),
        "vae": str(shipped["vae"]),
        "text.encoder": str(shipped["text_encoder"]),
    }
    config = importlib.import_module("configs.shapes_encode").get_config()
    config.update_from_flattened_dict(changed)
    heading(
        f"3/6 latents: python -m lit_jax encode --config configs/shapes_encode.py"
        f" --out {out / 'latents'} " + " ".join(f"--config.{k}={v}" for k, v in changed.items())
    )
    encode(from_mapping(EncodeConfig, config.to_dict()), out / "latents")


def train_student(
    recipe: str, out: Path, shipped: dict[str, Path], seed: int, steps: int | None
) -> Path:
    """Step 4: one student; the three differ in where they start and what they learn from."""
    workdir = out / f"lit_{recipe}"
    config = importlib.import_module("configs.shapes_lit").get_config(recipe)
    changed = {"seed": seed, "data.data_dir": str(out), "data.vae": str(shipped["vae"])}
    if steps is not None:
        warmup = min(config.optimizer.warmup_steps, steps // 4)
        changed |= {"total_steps": steps, "checkpoint_every": steps}
        changed |= {"optimizer.warmup_steps": warmup}
    for key in ("inherit.source", "distill.teacher"):
        group, name = key.split(".")
        if config[group][name]:
            changed[key] = str(shipped["teacher"])
    config.update_from_flattened_dict(changed)
    heading(
        f"4/6 student: python -m lit_jax train --config configs/shapes_lit.py:{recipe}"
        f" --workdir {workdir} " + " ".join(f"--config.{k}={v}" for k, v in changed.items())
    )
    train_to_the_end(from_mapping(TrainConfig, config.to_dict()), workdir)
    return workdir


def draw(
    out: Path, denoisers: dict[str, Path], shipped: dict[str, Path], seed: int, per_tag: int
) -> dict[str, Path]:
    """Step 5: the same prompts, noise and settings for every model."""
    chosen = prompts.prompts(per_tag)
    metadata = out / f"prompts_{per_tag}.jsonl"
    prompts.write_prompts(metadata, chosen)
    samples = {}
    for name, model in denoisers.items():
        target = out / "samples" / name
        heading(
            f"5/6 samples: python -m lit_jax generate --model {model}"
            f" --text_encoder {shipped['text_encoder']} --vae {shipped['vae']} --out {target}"
            f" --geneval {metadata} --num_images {PER_PROMPT} --steps {STEPS}"
            f" --cfg_scale {GUIDANCE} --batch_size {BATCH} --seed {seed}"
        )
        config = GenerateConfig(
            model=str(model),
            text_encoder=str(shipped["text_encoder"]),
            vae=str(shipped["vae"]),
            out=str(target),
            geneval=str(metadata),
            num_images=PER_PROMPT,
            protocol=dataclasses.replace(CAPTIONS, steps=STEPS, cfg_scale=GUIDANCE, seed=seed),
            batch_size=BATCH,
        )
        samples[name] = generate(config)
    return samples


def score(
    out: Path, denoisers: dict[str, Path], samples: dict[str, Path], seed: int
) -> list[report.Row]:
    """Step 6: what the detector sees, the pictures, and the report that says how it was made."""
    heading("6/6 scores")
    rows = []
    for name, model in denoisers.items():
        config: Any = ModelFolder(model).config
        steps, seconds = training_effort(model, models.SHIPPED["teacher"])
        rows.append(
            report.Row(
                name=name,
                **detector.score(samples[name]),
                steps=steps,
                params=count_params(abstract_params(config)),
                attention_macs=attention_macs(config),
                train_seconds=seconds,
            )
        )
    report.draw_samples(out / "samples.png", samples)
    draw_losses(out / "losses.png", denoisers)
    protocol = {
        "prompts": len(list(samples["teacher"].glob("[0-9]*/metadata.jsonl"))),
        "images": len(list(samples["teacher"].glob("[0-9]*/samples/*.png"))),
        "sampler": "dpm_solver (DPM-Solver++ 2M)",
        "steps": STEPS,
        "guidance": GUIDANCE,
        "dtype": json.loads((samples["teacher"] / "generate.json").read_text())["dtype"],
        "seed": seed,
        "detector_sha256": files.sha256_file(Path(detector.__file__)),
        "weights_sha256": {name: ModelFolder(model).sha256 for name, model in denoisers.items()},
    }
    report.write_report(out, rows, protocol)
    return rows


if __name__ == "__main__":
    main()
