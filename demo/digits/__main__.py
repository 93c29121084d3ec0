"""The whole idea on real images, on a CPU, in minutes: `make demo`.

A trained softmax DiT comes in as a PyTorch-layout checkpoint; three linear students are trained
from it for the same number of steps; all four models are sampled, scored and drawn side by side.
Uses the public commands and jobs only, prints each of them, and resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(ROOT))

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from demo.digits import classifier, dataset, features
from demo.digits import report as reports
from demo.digits.teacher import TEACHER, convert_teacher
from demo.training_runs import draw_losses, train_to_the_end, training_effort
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.commands.sample.job import sample
from lit_jax.config import TrainConfig, from_mapping
from lit_jax.config.protocol import Protocol
from lit_jax.config.sample import SampleConfig
from lit_jax.models.cost import attention_macs
from lit_jax.models.functional import abstract_params, count_params
from lit_jax.runs.progress import duration
from lit_jax.sampling.sampler import function_evaluations
from lit_jax.storage import files
from lit_jax.storage import png as images

Images = Mapping[str, np.ndarray]  # a loaded samples.npz

STUDENTS = ("distilled", "inherited", "scratch")
SAMPLERS = {"ddpm": "50", "ddim": "ddim25"}
GUIDANCE = 1.5
BATCH = 500
PER_CLASS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo", help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and sampling")
    parser.add_argument("--steps", type=int, help="training steps per student (default: config)")
    parser.add_argument("--count", type=int, default=500, help="images per model and sampler")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    try:
        run(Path(args.out), args.seed, args.steps, args.count)
    except (ValueError, OSError, FloatingPointError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def run(out: Path, seed: int, steps: int | None, count: int) -> None:
    """Run the five steps of the demo; steps that an earlier call finished are skipped."""
    began = time.perf_counter()
    if count < 10 * PER_CLASS:
        raise ValueError(f"--count {count} is too few for {PER_CLASS} images of each of 10 classes")
    data_dir = prepare_data(out)
    models = {"teacher": convert_teacher(out / "teacher", "2/5 teacher")}
    for recipe in STUDENTS:
        models[f"lit_{recipe}"] = train_student(recipe, out, data_dir, seed, steps)
    samples = {name: draw_samples(name, model, out, seed, count) for name, model in models.items()}
    report = score(models, samples, data_dir, out, seed)
    reports.write_report(out, report)

    print(f"\n{(out / 'report.md').read_text()}")
    print(f"wrote {out}/report.md, report.json, samples.png, losses.png")
    print(f"whole demo: {duration(time.perf_counter() - began)}")


def heading(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def prepare_data(out: Path) -> Path:
    """Step 1: the 1,797 digits of scikit-learn as a TFDS data set in ArrayRecord files."""
    data_dir = out / "data"
    heading(f"1/5 data: python -m lit_jax.data digits {data_dir}")
    info = dataset.prepare(data_dir)
    print({name: split.num_examples for name, split in info.splits.items()})
    return data_dir


def train_student(recipe: str, out: Path, data_dir: Path, seed: int, steps: int | None) -> Path:
    """Step 3: one student; the three differ in where they start and what they learn from."""
    workdir = out / f"lit_{recipe}"
    config = load_config("digits_lit")(recipe)
    changed = {"seed": seed, "data.data_dir": str(data_dir)}
    if steps is not None:
        changed |= {"total_steps": steps, "checkpoint_every": steps}
    for key in ("inherit.source", "distill.teacher"):
        group, name = key.split(".")
        if config[group][name]:
            changed[key] = str(out / "teacher")
    config.update_from_flattened_dict(changed)
    heading(
        f"3/5 student: python -m lit_jax train --config configs/digits_lit.py:{recipe}"
        f" --workdir {workdir} " + " ".join(f"--config.{k}={v}" for k, v in changed.items())
    )
    train_to_the_end(from_mapping(TrainConfig, config.to_dict()), workdir)
    return workdir


def load_config(name: str) -> Callable[..., ConfigDict]:
    """`get_config` of a file in configs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def draw_samples(name: str, model: Path, out: Path, seed: int, count: int) -> dict[str, Path]:
    """Step 4: the same labels and noise for every model, with DDPM and again with DDIM."""
    folders = {}
    weights = ModelFolder(model).sha256
    for sampler, steps in SAMPLERS.items():
        target = out / "samples" / f"{name}_{sampler}"
        heading(
            f"4/5 samples: python -m lit_jax sample --model {model} --out {target}"
            f" --num_samples {count} --sampler {sampler} --steps {steps} --cfg_scale {GUIDANCE}"
            f" --cfg_channels all --batch_size {BATCH} --seed {seed}"
        )
        folders[sampler] = target
        protocol = protocol_of(sampler, seed)
        if target.exists() and not is_of(target / "request.json", weights, protocol, count):
            print(f"{target} was drawn from another model or seed; drawing again")
            shutil.rmtree(target)
        if (target / "sample.json").exists():
            print(f"{target} is there already")
            continue
        sample(
            SampleConfig(
                model=str(model),
                out=str(target),
                num_samples=count,
                protocol=protocol,
                batch_size=BATCH,
            )
        )
    return folders


def is_of(request: Path, weights: str, protocol: Protocol, count: int) -> bool:
    """Return True if a folder of samples, finished or not, has these weights and this protocol."""
    if not request.exists():
        return False
    found = json.loads(request.read_text())
    wanted = weights, dataclasses.asdict(protocol), count
    return (found["weights_sha256"], found["protocol"], found["count"]) == wanted


def protocol_of(sampler: str, seed: int) -> Protocol:
    return Protocol(
        sampler=sampler,
        steps=SAMPLERS[sampler],
        cfg_scale=GUIDANCE,
        cfg_channels="all",
        seed=seed,
    )


def score(
    models: dict[str, Path],
    samples: dict[str, dict[str, Path]],
    data_dir: Path,
    out: Path,
    seed: int,
) -> reports.Report:
    """Step 5: distance to the real training digits, accuracy under a judge that has seen only
    held-out real digits, the pictures, and the report that says how all of it was made."""
    heading("5/5 scores")
    real, real_labels = dataset.load_split(data_dir, "train")
    heldout, heldout_labels = dataset.load_split(data_dir, "heldout")
    judge = classifier.train_judge(heldout, heldout_labels)
    drawn = {
        name: {sampler: np.load(path / "samples.npz") for sampler, path in folders.items()}
        for name, folders in samples.items()
    }
    rows = [score_model(name, models[name], drawn[name], real, judge) for name in models]
    draw_pictures(models, drawn, rows, (real, real_labels), out)
    records = [json.loads((samples[n]["ddpm"] / "sample.json").read_text()) for n in models]
    protocol = reports.Protocol(
        feature_space="digit-96",
        reference="digits/train",
        reference_sha256=files.sha256_array(real),
        reference_count=len(real),
        count=records[0]["count"],
        samplers=(sampler_record("ddpm", seed), sampler_record("ddim", seed)),
        guidance_scale=GUIDANCE,
        guidance_channels="all",
        guidance_interval=None,
        vae=None,
        dtype="float32",
        seed=seed,
        weights_sha256={n: r["weights_sha256"] for n, r in zip(models, records, strict=True)},
    )
    context = reports.Context(
        real_frechet_distance=features.digit_frechet_distance(real, heldout),
        real_count=len(heldout),
        judge_accuracy=classifier.conditional_accuracy(judge, real, real_labels),
        judge=classifier.DESCRIPTION,
    )
    return reports.Report(
        title="lit_jax demo: a softmax DiT becomes a linear one",
        rows=rows,
        protocol=protocol,
        context=context,
        pictures={"Samples (DDPM)": "samples.png", "Training loss": "losses.png"},
    )


def sampler_record(sampler: str, seed: int) -> reports.SamplerRecord:
    evaluations = function_evaluations(protocol_of(sampler, seed))
    return reports.SamplerRecord(sampler, SAMPLERS[sampler], evaluations)


def score_model(
    name: str, model: Path, drawn: dict[str, Images], real: np.ndarray, judge: classifier.Judge
) -> reports.ModelRow:
    """Return all numbers of one row of the report."""
    config: Any = ModelFolder(model).config
    distance = {k: features.digit_frechet_distance(real, v["arr_0"]) for k, v in drawn.items()}
    accuracy = {
        k: classifier.conditional_accuracy(judge, v["arr_0"], v["labels"]) for k, v in drawn.items()
    }
    steps, seconds = training_effort(model, TEACHER)
    return reports.ModelRow(
        name=name,
        frechet_distance=distance["ddpm"],
        accuracy=accuracy["ddpm"],
        ddim_frechet_distance=distance["ddim"],
        ddim_accuracy=accuracy["ddim"],
        steps=steps,
        params=count_params(abstract_params(config)),
        attention_macs=attention_macs(config),
        train_seconds=seconds,
    )


def draw_pictures(
    models: dict[str, Path],
    drawn: dict[str, dict[str, Images]],
    rows: list[reports.ModelRow],
    real: tuple[np.ndarray, np.ndarray],
    out: Path,
) -> None:
    """Write samples.png, real digits and every model side by side, and losses.png, the students."""
    panels = {"real": images.class_rows(*real, PER_CLASS, 10)}
    captions = {"real": f"{len(real[0]):,} digits"}
    for row in rows:
        ddpm = drawn[row.name]["ddpm"]
        panels[row.name] = images.class_rows(ddpm["arr_0"], ddpm["labels"], PER_CLASS, 10)
        captions[row.name] = f"FDD {row.frechet_distance:.2f}, accuracy {row.accuracy:.0%}"
    images.comparison_figure(
        out / "samples.png", panels, columns=PER_CLASS, captions=captions, scale=4
    )
    draw_losses(out / "losses.png", models)


if __name__ == "__main__":
    main()
