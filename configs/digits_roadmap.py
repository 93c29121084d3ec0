"""A miniature of the LiT paper's Tables 1-4, and of LiT's siblings, on handwritten digits.

    python -m lit_jax train --config configs/digits_roadmap.py:relu_dwc --workdir runs/relu_dwc

`make roadmap` runs all rows over three seeds (demo/roadmap) and makes the source models they
start from; docs/roadmap.md holds the result. Tables 1 and 2 train from scratch, Table 3 inherits,
Table 4 inherits and distils, as in the paper. Rows of one table share every number but the one that
the table is about. Table 5 is not in the paper: students of one teacher, LiT and its siblings, each
by its own recipe. The argument `source` is the softmax model whose early checkpoints are the
unconverged sources of Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from configs import common

MODELS = "runs/roadmap/models"
CONVERGED = "teacher"  # demo/teacher, 8,000 steps
SOURCE_STEPS = (500, 1_000, 2_000)
NOT_EMA = "source1000_model"
SCRATCH_STEPS = 800
INHERITED_STEPS = 200


@dataclass(frozen=True)
class Row:
    """One row of the miniature: what it changes, and the paper's row that it stands for.

    `fid` is the paper's FID-50K of that row, measured on ImageNet 256 with a LiT-S/2 after 400K
    steps, None where no paper has one. `changes` are keys of the config. `same_as` names a row of
    an earlier table that is the same run. `model` is a row of FAMILIES. An `untrained` row is no
    experiment: the source itself, with the attention of the row, is sampled.
    """

    table: int
    label: str
    paper: str
    fid: float | None
    changes: Mapping[str, Any] = field(default_factory=dict)
    same_as: str = ""
    model: str = "LiT"
    untrained: bool = False


FAMILIES: dict[str, dict[str, Any]] = {
    "LiT": {"mixer": "linear", "num_heads": 4, "kernel_size": 5, "kernel_fn": "relu"},
    "DiT": {"num_heads": 4},
    "CLEAR": {"num_heads": 4, "window_size": 3},
    "DiG": {"num_heads": 4},
}
"""Family -> its architecture, beside what all rows share."""


def _attention(
    label: str, paper: str, fid: float | None, model: str = "LiT", **overrides: Any
) -> Row:
    changes = {f"model.overrides.{k}": v for k, v in overrides.items()}
    return Row(1, label, paper, fid, changes, model=model)


def _heads(count: int, paper: str, fid: float) -> Row:
    text = f"{count} head{'s' if count > 1 else ''}"
    return Row(2, text, paper, fid, {"model.overrides.num_heads": count})


def _source(label: str, model: str, paper: str, fid: float, policy: str = "") -> Row:
    changes = {"inherit.source": f"{MODELS}/{model}"}
    return Row(3, label, paper, fid, changes | ({"inherit.policy": policy} if policy else {}))


def _weights(noise: float, variance: float, fid: float) -> Row:
    label = f"λ1 {noise:g}, λ2 {variance:g}"
    changes = {
        "distill.teacher": f"{MODELS}/{CONVERGED}",
        "distill.noise_weight": noise,
        "distill.variance_weight": variance,
    }
    return Row(4, label, f"teacher XL/2, {label}", fid, changes)


def _sibling(
    label: str, model: str, recipe: Mapping[str, Any], untrained: bool = False, **overrides: Any
) -> Row:
    changes = {f"model.overrides.{k}": v for k, v in overrides.items()} | dict(recipe)
    return Row(5, label, "", None, changes, model=model, untrained=untrained)


_TEACHER = {"distill.teacher": f"{MODELS}/{CONVERGED}", "distill.noise_weight": 0.5}
_EVERYTHING = {"inherit.policy": "all"}
# CLEAR, section 3.3: only the attention is trained, on its own outputs too.
_CLEAR = (
    _TEACHER
    | _EVERYTHING
    | {
        "distill.variance_weight": 0.0,
        "distill.attention_weight": 0.5,
        "distill.attention_every": 1,
        "inherit.freeze": (r"^(?!blocks/attn/)",),
    }
)
# LiT's recipe; what a DiG has and a softmax model has not starts fresh, besides the attention.
_DIG = _TEACHER | {
    "distill.variance_weight": 0.05,
    "inherit.reinitialise": (r"^blocks/(mlp|dwc)/",),
}

# The softmax model has 4 heads of 16 channels; the paper's DiT-S/2 has 6 of 64. Head counts stand
# for each other by their place: 1, 2, as many as softmax, heads of 8 and of 4 channels.
ROWS: dict[str, Row] = {
    "softmax": _attention("softmax", "softmax (DiT)", 68.40, mixer="softmax"),
    "relu": _attention("ReLU linear", "ReLU linear", 88.46, kernel_size=None),
    "relu_dwc": _attention("ReLU + DWC", "ReLU linear + DWC", 63.66),
    "focused_relu": _attention("focused ReLU", "focused, ReLU + DWC", 63.05, mixer="focused"),
    "focused_gelu": _attention(
        "focused GELU", "focused, GELU + DWC", 70.83, mixer="focused", kernel_fn="gelu"
    ),
    "gelu_dwc": _attention("GELU + DWC", "", None, kernel_fn="gelu"),
    "sana": _attention(
        "SANA", "", None, mixer="sana", kernel_size=None, num_heads=2, qkv_bias=False
    ),
    "window": _attention("CLEAR, r = 3", "", None, model="CLEAR"),
    "gated": _attention("DiG (and its MLP)", "DiG-S/2", 62.06, model="DiG"),
    "heads1": _heads(1, "1 head", 64.42),
    "heads2": _heads(2, "2 heads", 63.24),
    "heads4": Row(2, "4 heads", "6 heads", 63.66, same_as="relu_dwc"),
    "heads8": _heads(8, "48 heads", 78.76),
    "heads16": _heads(16, "96 heads", 116.00),
    "source500": _source("500 steps", "source500", "200K steps", 57.84),
    "source1000": _source("1,000 steps", "source1000", "400K steps (EMA)", 56.07),
    "source1000_model": _source("1,000 steps, not EMA", NOT_EMA, "400K steps (not EMA)", 56.07),
    "source2000": _source("2,000 steps", "source2000", "600K steps", 54.80),
    "source8000": _source("8,000 steps", CONVERGED, "800K steps", 53.83),
    "qkv": _source("8,000 steps + Q, K, V", CONVERGED, "600K steps + Q, K, V", 55.29, "qkv"),
    "kv": _source("8,000 steps + K, V", CONVERGED, "600K steps + K, V", 55.07, "kv"),
    "v": _source("8,000 steps + V", CONVERGED, "600K steps + V", 54.93, "v"),
    "q": _source("8,000 steps + Q", CONVERGED, "600K steps + Q", 54.82, "q"),
    "o": _source("8,000 steps + O", CONVERGED, "600K steps + O", 54.84, "o"),
    "lambda0_0": Row(4, "no teacher", "no teacher", 53.83, same_as="source8000"),
    "weak_teacher": Row(
        4,
        "weaker teacher, λ1 0.1",
        "teacher S/2, λ1 0.1",
        55.11,
        {
            "distill.teacher": f"{MODELS}/source2000",
            "distill.noise_weight": 0.1,
            "distill.variance_weight": 0.0,
        },
    ),
    "lambda.1_0": _weights(0.1, 0.0, 53.05),
    "lambda.05_0": _weights(0.05, 0.0, 53.41),
    "lambda.5_0": _weights(0.5, 0.0, 51.13),
    "lambda.1_.05": _weights(0.1, 0.05, 52.76),
    "lambda0_.05": _weights(0.0, 0.05, 53.49),
    "lambda.05_.05": _weights(0.05, 0.05, 53.14),
    "lambda.5_.05": _weights(0.5, 0.05, 50.79),
    "teacher": _sibling("the teacher", "DiT", _EVERYTHING, untrained=True),
    "softmax_trained": _sibling("softmax, attention trained", "DiT", _CLEAR),
    "clear3_untrained": _sibling("CLEAR, r = 3, untrained", "CLEAR", _EVERYTHING, untrained=True),
    "clear3": _sibling("CLEAR, r = 3", "CLEAR", _CLEAR),
    "clear2_untrained": _sibling(
        "CLEAR, r = 2, untrained", "CLEAR", _EVERYTHING, untrained=True, window_size=2
    ),
    "clear2": _sibling("CLEAR, r = 2", "CLEAR", _CLEAR, window_size=2),
    "lit": Row(5, "LiT, 2 heads", "", None, same_as="lambda.5_.05"),
    "dig": _sibling("DiG", "DiG", _DIG),
}
ARGUMENTS = (
    "source",
    *(name for name, row in ROWS.items() if not row.same_as and not row.untrained),
)


def get_config(argument: str = "relu_dwc") -> ConfigDict:
    name = common.choose(argument, ARGUMENTS)
    if name != "source":
        return row_config(ROWS[name])
    config = _base()
    config.model.name = "DiT"
    config.total_steps = SOURCE_STEPS[-1]
    config.checkpoint_every = SOURCE_STEPS[0]
    config.keep_checkpoints = config.total_steps // config.checkpoint_every
    return config


def _base() -> ConfigDict:
    """Return the settings that all rows share."""
    config = common.digits()
    config.batch_size = 16
    config.data.data_dir = "runs/roadmap/data"
    config.model.scan_unroll = 4  # four small layers: a quarter less time per step on a CPU
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.ema.decay = 0.99
    config.ema.warmup = True
    config.log_every = 20
    return config


def row_config(row: Row) -> ConfigDict:
    """Return the experiment of a row that is not a copy of another."""
    config = _base()
    config.model.name = row.model
    config.model.overrides.update(FAMILIES[row.model])
    config.total_steps = SCRATCH_STEPS if row.table < 3 else INHERITED_STEPS
    config.checkpoint_every = config.total_steps
    config.keep_checkpoints = 1
    if row.table > 2:  # the paper's choice of source, policy and, for LiT, heads
        if row.model == "LiT":
            config.model.overrides.num_heads = 2
        config.inherit.source = f"{MODELS}/{CONVERGED}"
        config.inherit.policy = "all_but_attention"
    for key, value in row.changes.items():
        group, _, last = key.rpartition(".")
        target = config
        for part in group.split("."):
            target = target[part]
        target[last] = value
    return config
