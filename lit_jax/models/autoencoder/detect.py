"""The architecture of an AutoencoderKL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lit_jax.config import typed_fields
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.autoencoder.config import SIZES, AutoencoderConfig

RELEASED_GROUPS = 32

FIRST_CONV = "encoder/down/{i}/resnets/{j}/conv1/kernel"


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that shapes decide.

    The number of groups leaves no trace in them; every released network has 32, which is assumed
    when nothing else is told and all widths are multiples of it.
    """
    widths = [_width(shapes, 0)]
    widths += [_width(shapes, i) for i in range(1, shapes.count(FIRST_CONV, "i", j=0))]
    found: dict[str, Any] = {
        "family": "AutoencoderKL",
        "in_channels": shapes.expect("encoder/conv_in/kernel")[1],
        "out_channels": shapes.expect("decoder/conv_out/kernel")[0],
        "latent_channels": shapes.expect("post_quant_conv/kernel")[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": shapes.count(FIRST_CONV, "j", i=0),
    }
    if "norm_num_groups" not in told and not any(width % RELEASED_GROUPS for width in widths):
        found["norm_num_groups"] = RELEASED_GROUPS
    return found


def _width(shapes: Shapes, level: int) -> int:
    key = shapes.key(FIRST_CONV, i=level, j=0)
    return shapes.ranked(key, shapes.expect(FIRST_CONV, i=level, j=0), 4)[0]


# config.json of diffusers: fields that are ours as they are ...
_SAME = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
)
# ... what its class assumes for those an older file lacks and shapes do not tell ...
_ASSUMED = {"norm_num_groups": 32, "scaling_factor": 0.18215}
# ... fields without influence on the numbers (nominal image size, advice against float16) ...
_WITHOUT_INFLUENCE = ("sample_size", "force_upcast")


def _all(name: str) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and bool(value) and all(v == name for v in value)

    return holds


# ... and fields of which this package has one value: test, and that value in words.
_ONLY: dict[str, tuple[Callable[[Any], bool], str]] = {
    "_class_name": (lambda value: value == "AutoencoderKL", "'AutoencoderKL'"),
    # Two names of one function.
    "act_fn": (lambda value: value in ("silu", "swish"), "'silu'"),
    "down_block_types": (_all("DownEncoderBlock2D"), "only 'DownEncoderBlock2D'"),
    "up_block_types": (_all("UpDecoderBlock2D"), "only 'UpDecoderBlock2D'"),
    "mid_block_add_attention": (lambda value: value is True, "true"),
    "use_quant_conv": (lambda value: value is True, "true"),
    "use_post_quant_conv": (lambda value: value is True, "true"),
    "shift_factor": (lambda value: value is None or value == 0, "null or 0"),
    "latents_mean": (lambda value: value is None, "null"),
    "latents_std": (lambda value: value is None, "null"),
}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields from the config.json beside a diffusers file.

    Raises one ValueError that lists every entry that describes another network: a value this
    package does not have, or an entry it does not know; and one for a value of another type.
    """
    known = {*_SAME, *_WITHOUT_INFLUENCE}
    problems = []
    for key, value in config.items():
        if key in _ONLY:
            holds, wanted = _ONLY[key]
            if not holds(value):
                problems.append(f"{key} is {value!r}; this package has {wanted}")
        elif key not in known and not key.startswith("_"):
            problems.append(f"{key} is {value!r}, an unknown entry")
    if problems:
        raise ValueError(
            "config.json does not describe an AutoencoderKL of this package:\n  "
            + "\n  ".join(problems)
        )
    said = {key: config[key] for key in _SAME if config.get(key) is not None}
    return _ASSUMED | typed_fields(AutoencoderConfig, said, "config.json")


def _why_groups(shapes: Shapes) -> str:
    widths = read(shapes, {})["block_out_channels"]
    return f"it is in config.json; widths {widths} are not all multiples of {RELEASED_GROUPS}"


def _why_scaling(shapes: Shapes) -> str:
    known = ", ".join(f"{row['scaling_factor']} for {name}" for name, row in SIZES.items())
    return f"it is in config.json: {known}"


DETECTOR = Detector(
    required={
        "encoder/conv_in/kernel": 4,
        "decoder/conv_out/kernel": 4,
        "quant_conv/kernel": 4,
        "post_quant_conv/kernel": 4,
    },
    read=read,
    asks={
        "norm_num_groups": (_why_groups, "norm_num_groups=GROUPS"),
        "scaling_factor": (_why_scaling, "scaling_factor=FACTOR"),
    },
    from_hub=from_hub,
    assumed={field: field for field in _ASSUMED},
)
