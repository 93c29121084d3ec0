"""The Inception of the FID, read from the shapes of its first and its last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.inception.config import WIDTH_UNIT

# Filters of the first convolution of the real network.
FIRST_WIDTH = 32
# Rows of torchvision's classifier, trained on the 1000 classes of ImageNet; the network of the FID
# has 1008. All other shapes are the same.
TORCHVISION_LOGITS = 1000


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return `width_divisor` and `num_logits`. The preprocessing is the user's: no file tells it.

    Raises ValueError for a first layer that no divisor explains, and for torchvision's network
    unless `num_logits=1000` was asked for.
    """
    width = shapes.expect("Conv2d_1a_3x3/conv/kernel")[0]
    logits = shapes.expect("fc/kernel")[0]
    divisors = {FIRST_WIDTH // d: d for d in range(1, WIDTH_UNIT + 1) if WIDTH_UNIT % d == 0}
    if width not in divisors:
        raise ValueError(
            f"Conv2d_1a_3x3.conv.weight has {width} filters; Inception V3 has {FIRST_WIDTH}, or"
            f" with a width_divisor one of {', '.join(map(str, sorted(divisors)))}"
        )
    if logits == TORCHVISION_LOGITS and told.get("num_logits") != logits:
        raise ValueError(
            f"fc.weight has {logits} rows: that is torchvision's classifier of ImageNet, whose"
            " features give no FID; the network of the FID (pt_inception-2015-12-05-6726825d.pth)"
            f" has 1008. To convert it all the same, pass --set num_logits={logits}"
        )
    return {"width_divisor": divisors[width], "num_logits": logits}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raise ValueError: the network of the FID is published as one file."""
    kind = config.get("_class_name") or config.get("architectures") or "another network"
    raise ValueError(
        f"the config.json beside the file describes {kind}, but the network of the FID comes"
        " without one: move the file to a folder of its own"
    )


DETECTOR = Detector(
    required={"Conv2d_1a_3x3/conv/kernel": 4, "fc/kernel": 2},
    read=read,
    asks={},
    from_hub=from_hub,
)
