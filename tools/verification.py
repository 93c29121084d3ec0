"""The torch original and the flax model on the same random inputs, compared output by output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.checkpoints.pairing import StateDict
from lit_jax.keymap.rows import Layout
from lit_jax.models.family import architecture
from tools.torch_files import import_torch

# Largest accepted max |flax - torch| / max |torch|, by the dtype of the stored parameters; float32
# differences measured so far stay below 5e-6.
TOLERANCES = {"float32": 2e-5, "bfloat16": 5e-2}


class VerificationError(Exception):
    """The flax model does not compute what the torch model computes."""


def verify(state: StateDict, layout: Layout, model_dir: Path, dtype: str) -> None:
    """Print max |difference| of every output; raise VerificationError above the tolerance.

    `state` is the checkpoint under its own keys, `model_dir` what was made of it.
    """
    torch = import_torch("--verify")
    from lit_jax.checkpoints.model_folder import ModelFolder, load_model
    from tools import torch_reference

    fields = architecture(ModelFolder(model_dir).config)
    kind = layout.config().family
    inputs = torch_reference.random_inputs(kind, fields)
    # The import has accepted the stored position table, whose numbers may be rounded, and flax has
    # computed its own; without the stored one the reference computes it too.
    weights = {
        key: torch.from_numpy(np.array(value, np.float32))
        for key, value in state.items()
        if key != "pos_embed"
    }
    with torch.inference_mode():
        results = torch_reference.outputs(weights, f"{kind}/{layout.name}", fields, inputs)
    expected = {name: value.numpy() for name, value in results.items()}
    del weights
    got = FLAX_OUTPUTS[kind](
        load_model(model_dir), {name: value.numpy() for name, value in inputs.items()}
    )
    tolerance = TOLERANCES[dtype]
    failed = []
    for name, value in expected.items():
        difference = float(np.abs(got[name] - value).max())
        limit = tolerance * float(np.abs(value).max())
        print(f"verify {name}: max |difference| {difference:.3g} (limit {limit:.3g})")
        if not difference <= limit:
            failed.append(f"{name} by {difference:.3g}, limit {limit:.3g}")
    if failed:
        raise VerificationError(
            f"flax and torch outputs differ: {'; '.join(failed)}; nothing was written"
        )


def _nhwc(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image, 1, -1)


def _nchw(image: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(image), -1, 1)


def _call(method: Any, *inputs: Any) -> Any:
    """Return one compiled call in full float32 precision."""
    import jax
    from flax import nnx

    with jax.default_matmul_precision("highest"):
        return nnx.jit(method)(*inputs)


def _noise_and_variance(out: Any, channels: int) -> dict[str, np.ndarray]:
    image = _nchw(out)
    parts = {"noise": image[:, :channels], "variance": image[:, channels:]}
    return {name: part for name, part in parts.items() if part.size}


def _dit(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = _call(lambda m, *a: m(*a), model, _nhwc(inputs["x"]), inputs["t"], inputs.get("y"))
    return _noise_and_variance(out, model.config.in_channels)


def _pixart(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from lit_jax.models.conditions import TextCondition

    cond = TextCondition(
        inputs["tokens"], inputs["mask"], inputs.get("img_hw"), inputs.get("aspect_ratio")
    )
    out = _call(lambda m, *a: m(*a), model, _nhwc(inputs["x"]), inputs["t"], cond)
    return _noise_and_variance(out, model.config.in_channels)


def _autoencoder(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    moments = _call(lambda m, a: m.encode(a), model, _nhwc(inputs["image"]))
    decoded = _call(lambda m, a: m.decode(a), model, _nhwc(inputs["latent"]))
    return {"moments": _nchw(moments), "decoded": _nchw(decoded)}


def _t5(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = _call(lambda m, *a: m(*a), model, inputs["token_ids"], inputs["mask"])
    return {"last_hidden_state": np.asarray(out)}


def _inception(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    features = _call(lambda m, a: m(a), model, _nhwc(inputs["images"]))
    plain = {name: np.asarray(getattr(features, name)) for name in ("pool3", "logits")}
    return plain | {"spatial": _nchw(features.spatial)}


FLAX_OUTPUTS = {
    "DiT": _dit,
    "DiG": _dit,
    "PixArt": _pixart,
    "AutoencoderKL": _autoencoder,
    "T5": _t5,
    "Inception": _inception,
}
