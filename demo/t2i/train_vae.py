"""Makes the text-to-image demo's autoencoder again: minutes on one core.

An `AutoencoderKL` of three levels, so that an image of 32 x 32 x 3 becomes a latent of 8 x 8 x 4,
trained on rendered scenes with mean absolute plus squared error and a weak pull of the latents to
N(0, 1). `scaling_factor` is measured afterwards: it gives the latents a standard deviation of 1, as
the noise schedule expects.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from demo.t2i import shapes
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.autoencoder.model import AutoencoderKL, kl, sample_latents

ROOT = Path(__file__).resolve().parents[2]
CONFIG = AutoencoderConfig(
    scaling_factor=1.0, block_out_channels=(16, 32, 48), layers_per_block=1, norm_num_groups=4
)
KL_WEIGHT = 1e-3
"""Of the KL divergence per latent number: small enough that shapes stay sharp."""

BATCH = 8
DATA_SEED = 1_000_000
"""Not the seed of any data set that is encoded."""


def images(first: int, count: int) -> np.ndarray:
    """Scenes as float32 [N, 32, 32, 3] in [-1, 1]."""
    drawn = [shapes.render(shapes.example(DATA_SEED, first + n).things) for n in range(count)]
    return np.stack(drawn).astype(np.float32) / 127.5 - 1


def train(steps: int, batch: int, images_NxHxWxC: np.ndarray) -> AutoencoderKL:
    """The trained model, its `scaling_factor` still 1."""
    model = AutoencoderKL(CONFIG, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, steps, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss_of(params: nnx.State, x: jax.Array, key: jax.Array) -> jax.Array:
        vae = nnx.merge(graphdef, params)
        moments = vae.encode(x)
        error = vae.decode(sample_latents(moments, key, 1.0)) - x
        latents = moments.size // moments.shape[0] // 2
        return (
            jnp.mean(jnp.abs(error))
            + jnp.mean(jnp.square(error))
            + KL_WEIGHT * jnp.mean(kl(moments)) / latents
        )

    @jax.jit
    def step(params: nnx.State, state: optax.OptState, x: jax.Array, key: jax.Array):  # type: ignore[no-untyped-def]
        loss, gradient = jax.value_and_grad(loss_of)(params, x, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for number in range(steps):
        rows = rng.integers(len(images_NxHxWxC), size=batch)
        key = jax.random.fold_in(jax.random.key(0), number)
        params, state, loss = step(params, state, images_NxHxWxC[rows], key)
        if number % 100 == 99:
            took = time.perf_counter() - began
            print(f"step {number + 1}/{steps}  loss {float(loss):.4f}  {took:.0f} s", flush=True)
    return nnx.merge(graphdef, params)


def measure(model: AutoencoderKL, images_NxHxWxC: np.ndarray) -> tuple[float, float, float]:
    """(standard deviation of the sampled latents, that of their noise, RMS error of images)."""
    moments = model.encode(jnp.asarray(images_NxHxWxC))
    latents = sample_latents(moments, jax.random.key(1), 1.0)
    noise = jnp.sqrt(jnp.mean(jnp.exp(moments[..., moments.shape[-1] // 2 :])))
    error = model.decode(latents) - images_NxHxWxC
    return float(jnp.std(latents)), float(noise), float(jnp.sqrt(jnp.mean(error**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dst", default="demo/t2i/vae", help="folder of the result")
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    args = parser.parse_args()
    data = images(0, 3000)
    model = train(args.steps, BATCH, data)
    spread, noise, error = measure(model, images(len(data), 200))
    print(f"latents: std {spread:.3f}, noise {noise:.3f}; RMS error of images {error:.4f}")
    config = dataclasses.replace(CONFIG, scaling_factor=round(1 / spread, 4))
    params = nnx.to_pure_dict(nnx.state(model))
    with tempfile.TemporaryDirectory() as scratch:
        save_model_dir(f"{scratch}/vae", config, params, {"made_by": "demo/t2i/train_vae.py"})
        command = ["tools/convert_torch_ckpt.py", "--export", "--layout", "diffusers"]
        command += ["--src", f"{scratch}/vae", "--dst", args.dst, "--overwrite"]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
