"""Inception V3 as a table: its blocks, their branches and the layers of each, and how they run.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015), figures 5-7 and
10, with the padding and pooling of the TensorFlow graph that the FID is defined on. Names of
layers are those of the PyTorch checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

# The TensorFlow default, 0.001.
BATCH_NORM_EPS = 1e-3

# Scores are compared across machines: no reduced precision on accelerators.
PRECISION = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Conv:
    """Convolution without bias, batch norm, ReLU. "SAME" is symmetric: odd kernels, stride 1."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Step = str | Conv | tuple[Conv, ...]
"""A row of POOLS, a convolution, or convolutions of one input side by side, concatenated."""

Branch = tuple[Step, ...]


def _mean_pool(x_BxHxWxC: jax.Array) -> jax.Array:
    """Return mean over 3 x 3 pixels; at the border over those inside of the image."""
    return nnx.avg_pool(x_BxHxWxC, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x_BxHxWxC: jax.Array) -> jax.Array:
    return nnx.max_pool(x_BxHxWxC, (3, 3), padding="SAME")


def _max_pool_half(x_BxHxWxC: jax.Array) -> jax.Array:
    return nnx.max_pool(x_BxHxWxC, (3, 3), strides=(2, 2))


POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": _mean_pool,
    "max": _max_pool,
    "max_half": _max_pool_half,
}


def _block_35x35(pool_width: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        ("mean", Conv("branch_pool", pool_width)),
    )


def _block_17x17(width: int) -> tuple[Branch, ...]:
    """Return n x n convolutions as 1 x n and n x 1, figure 6 with n = 7."""
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        ("mean", Conv("branch_pool", 192)),
    )


def _block_8x8(pool: str) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


_TO_17x17: tuple[Branch, ...] = (
    (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    ),
    ("max_half",),
)

_TO_8x8: tuple[Branch, ...] = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
    ("max_half",),
)

# 299 x 299 x 3 -> 73 x 73 x 64, and on to 35 x 35 x 192.
STEM: tuple[Branch, ...] = (
    (
        Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
        Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
        Conv("Conv2d_2b_3x3", 64, (3, 3)),
        "max_half",
    ),
    (
        Conv("Conv2d_3b_1x1", 80),
        Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
        "max_half",
    ),
)

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_35x35(32),
    "Mixed_5c": _block_35x35(64),
    "Mixed_5d": _block_35x35(64),
    "Mixed_6a": _TO_17x17,
    "Mixed_6b": _block_17x17(128),
    "Mixed_6c": _block_17x17(160),
    "Mixed_6d": _block_17x17(160),
    "Mixed_6e": _block_17x17(192),
    "Mixed_7a": _TO_8x8,
    "Mixed_7b": _block_8x8("mean"),
    # The graph of the FID takes a maximum here, later versions of the network a mean.
    "Mixed_7c": _block_8x8("max"),
}


def _he_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return uniform on +-sqrt(6 / fan_in), float32 of `shape`, fan_in being all axes but the last.

    Drawn in powers of four: the random generator is compiled for ten sizes instead of sixty, which
    is most of the time that a fresh network takes.
    """
    bound, count = math.sqrt(6.0 / math.prod(shape[:-1])), math.prod(shape)
    drawn = 4 ** math.ceil(math.log(count, 4))
    return jax.random.uniform(key, (drawn,), jnp.float32, -bound, bound)[:count].reshape(shape)


class _Convolution(nnx.Module):
    """The filters alone: `kernel` [kh, kw, in, out]."""

    def __init__(self, shape: tuple[int, int, int, int], *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_he_uniform(rngs.params(), shape))


class _BatchNorm(nnx.Module):
    """Scale, bias and stored statistics, float32 [channels] each; nothing here is updated."""

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.mean = nnx.Param(jnp.zeros((channels,)))
        self.var = nnx.Param(jnp.ones((channels,)))


class ConvBnRelu(nnx.Module):
    """relu(batch norm(convolution)) with stored statistics: [B, H, W, in] -> [B, H', W', out]."""

    def __init__(self, row: Conv, inputs: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.row = row
        self.conv = _Convolution((*row.kernel, inputs, width), rngs=rngs)
        self.bn = _BatchNorm(width)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        # Normalising the filters instead of every pixel of the output.
        bn = self.bn
        gain = bn.scale[...] * jax.lax.rsqrt(bn.var[...] + BATCH_NORM_EPS)
        y = jax.lax.conv_general_dilated(
            x_BxHxWxC,
            self.conv.kernel[...] * gain,
            (self.row.stride, self.row.stride),
            self.row.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )
        return jax.nn.relu(y + (bn.bias[...] - bn.mean[...] * gain))


def add_branch(
    module: nnx.Module, branch: Branch, inputs: int, width_divisor: int, rngs: nnx.Rngs
) -> int:
    """Make the convolutions of a branch attributes of `module`; return the width of its end."""
    for step in branch:
        if isinstance(step, str):
            continue
        rows = (step,) if isinstance(step, Conv) else step
        widths = [row.width // width_divisor for row in rows]
        for row, width in zip(rows, widths, strict=True):
            setattr(module, row.name, ConvBnRelu(row, inputs, width, rngs=rngs))
        inputs = sum(widths)
    return inputs


def run_branch(module: nnx.Module, branch: Branch, x_BxHxWxC: jax.Array) -> jax.Array:
    """Return a branch with the convolutions that `add_branch` gave to `module`."""
    x = x_BxHxWxC
    for step in branch:
        if isinstance(step, str):
            x = POOLS[step](x)
        elif isinstance(step, Conv):
            x = getattr(module, step.name)(x)
        else:
            x = jnp.concatenate([getattr(module, row.name)(x) for row in step], axis=-1)
    return x


class InceptionBlock(nnx.Module):
    """A row of BLOCKS. `out_channels` is the width of its branches together."""

    def __init__(self, name: str, inputs: int, width_divisor: int, *, rngs: nnx.Rngs) -> None:
        self.name = name
        self.out_channels = sum(
            add_branch(self, branch, inputs, width_divisor, rngs) for branch in BLOCKS[name]
        )

    def branches(self, x_BxHxWxC: jax.Array) -> list[jax.Array]:
        """Return the branches on one input [B, H, W, in], in the order of the table, for
        concatenation: [B, H', W', width of the branch] each."""
        return [run_branch(self, branch, x_BxHxWxC) for branch in BLOCKS[self.name]]
