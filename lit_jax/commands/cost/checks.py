"""Checks of a cost job before anything is compiled or written, and its request."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import check_parents
from lit_jax.commands.cost.compiled import PROGRAMS
from lit_jax.config.cost import CostConfig
from lit_jax.models import functional, registry
from lit_jax.models.dit.model import dtype_name
from lit_jax.models.family import architecture
from lit_jax.models.registry import DenoiserConfig, family_of


@dataclass(frozen=True)
class Plan:
    """Result of the checks. `networks`: model -> resolution -> its configuration."""

    config: CostConfig
    out: Path
    networks: dict[str, dict[int, DenoiserConfig]]
    request: dict[str, Any]

    def programs(self) -> list[tuple[str, int, str]]:
        """Return (model, resolution, row of PROGRAMS) of all that is compiled, the quick ones
        first."""
        return [
            (model, resolution, program)
            for resolution in self.config.resolutions
            if resolution <= self.config.compile_up_to
            for model, of_model in self.networks.items()
            for program in PROGRAMS
            if program != "train" or trained(of_model[resolution])
        ]


def trained(config: DenoiserConfig) -> bool:
    """Return True for a model that `train` accepts."""
    return family_of(config).untrained(config) is None


def check(config: CostConfig) -> Plan:
    """Check everything before compiling. Raises ValueError for a job that cannot work."""
    dtype_name(config.dtype)
    networks = {}
    for text in config.models:
        network = denoiser(text)
        networks[text] = {side: resized(network, text, side, config) for side in config.resolutions}
        for resized_network in networks[text].values():
            functional.abstract_params(resized_network)  # some mixers refuse some token grids
    out = Path(config.out).absolute()
    check_parents(out)
    request = {
        "models": {
            text: architecture(of_model[config.resolutions[0]])
            for text, of_model in networks.items()
        },
        "resolutions": list(config.resolutions),
        "vae_factor": config.vae_factor,
        "compile_up_to": config.compile_up_to,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    return Plan(config, out, networks, request)


SET_BY_FLAGS = {"input_size": "--resolutions", "dtype": "--dtype"}
"""Arguments of a model that this job chooses itself."""


def denoiser(text: str) -> DenoiserConfig:
    """Return the configuration of a model folder, or of a name and arguments: "CLEAR-S/2
    window_size=16".

    Raises ValueError for an unknown name, folder or argument, and for another kind of network.
    """
    if Path(text).is_dir():
        network: Any = ModelFolder(text, expect="denoiser", flag="--model", finished=False).config
        return network
    name, *settings = text.split() or [""]
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--model {text!r}: {setting!r} is not of the form NAME=VALUE")
        if key in SET_BY_FLAGS:
            raise ValueError(
                f"--model {text!r}: {key} is that of {SET_BY_FLAGS[key]}; leave it out"
            )
        overrides[key] = _value(value)
    if name.startswith((".", "/")):
        raise ValueError(f"--model {text}: there is no such folder")
    network = registry.model_config(name, **overrides)
    if family_of(network).condition is None:
        raise ValueError(f"{name} is a {network.family}; a denoiser such as a DiT is needed")
    return network


def _value(text: str) -> Any:
    """Return a number, None or True; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def resized(
    network: DenoiserConfig, text: str, resolution: int, config: CostConfig
) -> DenoiserConfig:
    """Return the network for images of `resolution` x `resolution` pixels. Raises ValueError for
    one that does not divide into patches."""
    step = config.vae_factor * network.patch_size
    if resolution % step:
        raise ValueError(
            f"resolution {resolution} is not a multiple of {step}, vae_factor {config.vae_factor} x"
            f" patch_size {network.patch_size} of {text}"
        )
    return dataclasses.replace(
        network, input_size=resolution // config.vae_factor, dtype=config.dtype
    )
