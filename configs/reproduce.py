"""What the published rows cost, and the pages made from them.

    python -m configs.reproduce > docs/reproduce.md        the page
    python -m configs.reproduce lit_imagenet256            the table of that file's docstring

Costs are computed from the operations of the networks, not measured.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from configs.published import ROWS, TABLES, Row
from lit_jax.config import TrainConfig, from_mapping
from lit_jax.models import registry
from lit_jax.models.cost import forward_macs, train_step_flops
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.registry import LabelledConfig

# Dense bfloat16 peak of an NVIDIA H200, and the share of it that a run is assumed to reach.
PEAK_FLOPS = 989e12
UTILISATION = 0.4
# FID-50K with 250 steps, as DiT and LiT measure it.
SAMPLES, SAMPLING_STEPS = 50_000, 250
# Their weights are public.
RELEASED = ("dit_imagenet256:XL/2-7M", "dit_imagenet512:XL/2-3M")


@functools.cache
def build(config: str) -> TrainConfig:
    """The experiment FILE:ARGUMENT, checked."""
    file, _, argument = config.partition(":")
    module = importlib.import_module(f"configs.{file}")
    return from_mapping(TrainConfig, module.get_config(argument).to_dict())


def student_config(config: TrainConfig) -> LabelledConfig:
    found = registry.model_config(config.model.name, **config.model.overrides)
    assert isinstance(found, LabelledConfig), config.model.name
    return found


def teacher_config(config: TrainConfig) -> DiTConfig | None:
    """The DiT that the name of the teacher's folder says, models/DiT-XL-2-512, of the student's
    resolution."""
    if not config.distill.teacher:
        return None
    named = re.match(r"DiT-(S|B|L|XL)-(\d)", Path(config.distill.teacher).name)
    assert named is not None, config.distill.teacher
    size = student_config(config).input_size
    found = registry.model_config(f"DiT-{named[1]}/{named[2]}", input_size=size)
    assert isinstance(found, DiTConfig)
    return found


def hours(flops: float) -> float:
    """Hours of one H200 at the assumed utilisation; no data, compilation or sampling."""
    return flops / (UTILISATION * PEAK_FLOPS) / 3600


def training_hours(config: TrainConfig) -> float:
    """Training of the student, with the teacher's forward passes, without what it starts from."""
    step = train_step_flops(student_config(config), config.batch_size, teacher_config(config))
    return hours(step * config.total_steps)


def sampling_hours(config: TrainConfig, cfg: float) -> float:
    """50,000 samples in 250 steps, twice the passes with guidance; without the VAE."""
    passes = SAMPLES * SAMPLING_STEPS * (1 if cfg == 1.0 else 2)
    return hours(2.0 * forward_macs(student_config(config)) * passes)


def steps_text(steps: int) -> str:
    """400_000 -> 400K, 1_400_000 -> 1.4M."""
    return f"{steps / 1e6:g}M" if steps >= 1_000_000 else f"{steps / 1e3:g}K"


def number(text: str) -> str:
    return f"0{text}" if text.startswith(".") else text


def docstring_table(file: str) -> str:
    """The table in the docstring of an experiment file: its rows, each once per guidance."""
    header = ("argument", "steps", "batch", "guidance", "FID", "IS", "P", "R", "H200 hours")
    lines: list[tuple[str, ...]] = [header]
    seen = set()
    for row in ROWS:
        name, _, argument = row.config.partition(":")
        if name != file or (argument, row.cfg) in seen:
            continue
        seen.add((argument, row.cfg))
        config = build(row.config)
        scores = [number(score) for score in row.scores.split()]
        scores += ["-"] * (4 - len(scores))
        cost = f"{training_hours(config):.1f}"
        size = str(config.batch_size)
        lines.append(
            (argument, steps_text(config.total_steps), size, f"{row.cfg:g}", *scores, cost)
        )
    if all(line[3] == "1" for line in lines[1:]):
        lines = [line[:3] + line[4:] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "    "
        + line[0].ljust(widths[0])
        + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def page() -> str:
    """docs/reproduce.md."""
    text = [INTRODUCTION.format(percent=f"{UTILISATION:.0%}".replace("%", " %"))]
    for table, title in TABLES.items():
        text += [f"## {title}", "", *table_lines(row for row in ROWS if row.table == table), ""]
    runs = {row.config: training_hours(build(row.config)) for row in ROWS}
    released = sum(cost for config, cost in runs.items() if config in RELEASED)
    text.append(
        f"All {len(runs)} runs, each by itself: {sum(runs.values()):,.0f} H200 hours,"
        f" {released:,.0f} of them for the two released models, which need not be trained again.\n"
    )
    return "\n".join(text)


def table_lines(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| row | config | steps | batch | guidance | paper: FID / IS / P / R | ours | H200 hours:"
        " training | sampling |",
        "|---|---|---:|---:|---:|---|---|---:|---:|",
    ]
    for row in rows:
        config = build(row.config)
        cells = [
            row.name,
            "`" + row.config.replace(":", ".py:") + "`",
            steps_text(config.total_steps),
            str(config.batch_size),
            "none" if row.cfg == 1.0 else f"{row.cfg:g}",
            " / ".join(map(number, row.scores.split())),
            row.ours,
            f"{training_hours(config):.1f}",
            f"{sampling_hours(config, row.cfg):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


INTRODUCTION = """\
# Reproduce

Every row of the LiT paper's Tables 1-7 is one command. *paper* is what the paper printed; *ours* is
empty where this project has not run the row, and it has run none at this scale. What does run here
is a miniature of Tables 1-4 and of LiT's siblings: [roadmap.md](roadmap.md). Rows without numbers
are in no paper.

This page is printed by `python -m configs.reproduce` from the rows in `configs/published.py`.

## Before

ImageNet becomes latents, and the published PyTorch files model folders, once
([data.md](data.md), [checkpoints.md](checkpoints.md)):

```
python tools/convert_torch_ckpt.py --src sd-vae-ft-ema --dst models/sd-vae-ft-ema
python tools/convert_torch_ckpt.py --src pt_inception-2015-12-05-6726825d.pth --dst models/inception
python tools/convert_torch_ckpt.py --src DiT-XL-2-256x256.pt --dst models/DiT-XL-2
python tools/convert_torch_ckpt.py --src DiT-XL-2-512x512.pt --dst models/DiT-XL-2-512
tfds build imagenet2012 --data_dir=data/tfds --file_format=array_record
python -m lit_jax encode --config configs/encode_imagenet.py:256 --out data/imagenet256_latents
python -m lit_jax encode --config configs/encode_imagenet.py:512 --out data/imagenet512_latents
```

Students of the sizes S, B and L start from a softmax model of 800K steps. A workdir may be copied
and used as a model folder, so one run of the DiT-S/2 passes through every source of Table 3:

```
for STEPS in 200 300 400 600 800; do
    SOURCE=models/DiT-S-2-${{STEPS}}K
    test -e $SOURCE && continue
    python -m lit_jax train --config configs/dit_imagenet256.py:S/2-800K --workdir runs/dit_s2 \\
        --config.total_steps=${{STEPS}}000
    cp -r runs/dit_s2 $SOURCE.copy && mv $SOURCE.copy $SOURCE
done
for SIZE in B L; do
    python -m lit_jax train --config configs/dit_imagenet256.py:$SIZE/2-800K \\
        --workdir models/DiT-$SIZE-2-800K
done
```

A student inherits the EMA. For the row "not EMA" one more step with a decay of 0 makes the EMA the
weights themselves:

```
cp -r models/DiT-S-2-400K models/DiT-S-2-400K-model
python -m lit_jax train --config configs/dit_imagenet256.py:S/2-800K \\
    --workdir models/DiT-S-2-400K-model --config.total_steps=400001 --config.ema.decay=0
```

Students of CLEAR learn from examples that their teacher draws; for 512 x 512 the same with
`:imagenet512` and `data/imagenet512_drawn`:

```
python -m lit_jax self_generate --config configs/self_generate.py:imagenet256 \\
    --out data/imagenet256_drawn
for SIZE in S B L; do
    python -m lit_jax self_generate --config configs/self_generate.py:imagenet256 \\
        --config.model=models/DiT-$SIZE-2-800K --out data/imagenet256_drawn_$SIZE-2
done
```

## One row

Take *config* and *guidance* of a row; 512 x 512 is compared with `VIRTUAL_imagenet512.npz`.

```
CONFIG=lit_imagenet256.py:S/2 CFG=1 RUN=runs/lit_s2
python -m lit_jax train --config configs/$CONFIG --workdir $RUN
python -m lit_jax sample --model $RUN --out $RUN-samples --num_samples 50000 \\
    --label_policy uniform --steps 250 --cfg_scale $CFG --vae models/sd-vae-ft-ema
python -m lit_jax evaluate --samples $RUN-samples --out $RUN-metrics.json \\
    --reference VIRTUAL_imagenet256_labeled.npz --inception models/inception
```

For a released model give `sample` its folder, for instance `--model models/DiT-XL-2`.

*H200 hours* are an estimate for one NVIDIA H200: operations of the network
(`lit_jax/models/cost.py`) at {percent} of 989 TFLOP/s. They are computed and not measured; reading
data, the VAE and what a student starts from come on top. Divide by the number of devices.
"""


def main(arguments: list[str]) -> None:
    print("\n\n".join(map(docstring_table, arguments)) if arguments else page().rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
