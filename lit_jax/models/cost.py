"""Closed-form cost of a forward pass, in multiply-accumulates (MACs) per image, and parameters.

The DiT paper prints MACs as "Gflops". There are two counts of linear attention: `attention_macs`,
as the LiT paper prints it, to compare with the paper; and the products of Algorithm 1, which
everything else here uses."""

from __future__ import annotations

import re

import jax

from lit_jax.models import functional
from lit_jax.models.attention import mixer_class
from lit_jax.models.registry import DenoiserConfig, family_of
from lit_jax.models.transformer.macs import COMPONENTS


def attention_macs(config: DenoiserConfig) -> int:
    """Return the MACs of all self-attention layers for one image, as Eq. 4 of the LiT paper counts
    them."""
    return config.depth * mixer_class(config.mixer).printed_macs(config)


def multiplied_attention_macs(config: DenoiserConfig) -> int:
    """Return the MACs that all self-attention layers really take for one image, filters
    included."""
    components = forward_components(config)
    return sum(components[name] for name in ("projections", "attention", "convolution"))


def forward_components(config: DenoiserConfig) -> dict[str, int]:
    """Return the MACs of a forward pass per image of the nominal size, by COMPONENTS; for a model
    of captions with captions of the full length."""
    macs = family_of(config).macs
    if macs is None:
        raise ValueError(f"the cost of a {config.family} is not known; a denoiser is needed")
    return macs(config)


def forward_macs(config: DenoiserConfig) -> int:
    """Return the MACs of a forward pass per image of the nominal size, attention as multiplied."""
    return sum(forward_components(config).values())


def train_step_flops(
    config: DenoiserConfig, batch_size: int, teacher: DenoiserConfig | None = None
) -> float:
    """Return the floating-point operations of one training step: forward and backward (3 x) of the
    student, forward of the teacher; two operations per MAC. Recomputation by remat is not
    counted."""
    macs = 3 * forward_macs(config) + (forward_macs(teacher) if teacher is not None else 0)
    return 2.0 * macs * batch_size


def parameter_components(config: DenoiserConfig) -> dict[str, int]:
    """Return parameters by COMPONENTS, from the shapes of the network itself. Everything inside a
    mixer but its filters counts as "projections", its norms, scales and position tables too."""
    counts = dict.fromkeys(COMPONENTS, 0)
    patterns = family_of(config).components
    for path, leaf in jax.tree.leaves_with_path(functional.abstract_params(config)):
        name = "/".join(str(key.key) for key in path)
        component = next((c for pattern, c in patterns if re.search(pattern, name)), None)
        if component is None:
            raise ValueError(
                f"no pattern matches {name!r}; add a row to `components` of its family"
            )
        counts[component] += leaf.size
    return counts
