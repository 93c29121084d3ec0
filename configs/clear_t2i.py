"""CLEAR for text to image: PixArt-Sigma, its self-attention cut to circles.

    python -m lit_jax train --config configs/clear_t2i.py:1024 --workdir runs/clear_t2i_1024

    argument     steps  batch  radius  pooled  keys per query   of   teacher
    512            10K     32       8       -             155  1024  PixArt-Sigma 512
    512-r8-f4      10K     32       8   4 x 4        155 + 64  1024  PixArt-Sigma 512
    1024           10K     32       8       -             173  4096  PixArt-Sigma 1024
    1024-r16       10K     32      16       -             634  4096  PixArt-Sigma 1024
    1024-r32       10K     32      32       -            1974  4096  PixArt-Sigma 1024
    1024-r8-f4     10K     32       8   4 x 4       173 + 256  4096  PixArt-Sigma 1024
    1024-r16-f4    10K     32      16   4 x 4       634 + 256  4096  PixArt-Sigma 1024

The five windows of 1024 px are those that CLEAR released for FLUX at that resolution. Keys per
query are means: circles end at the border. The cross-attention to the text is the teacher's, and
frozen.

Source and teacher are one PixArt-Sigma, which first draws the examples for a file of prompts:

    python -m lit_jax self_generate --config configs/self_generate.py:t2i \\
        --config.prompt_file=prompts.txt --out data/t2i1024_drawn

and for 512 px with `--config.model=models/PixArt-Sigma-XL-2-512` and `--out data/t2i512_drawn`. One
caption in ten is dropped, as when the teacher was trained.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

WINDOWS = ("r16", "r32", "r8-f4", "r16-f4")
ARGUMENTS = ("512", "512-r8-f4", "1024", *(f"1024-{window}" for window in WINDOWS))


def get_config(argument: str = "1024") -> ConfigDict:
    side, _, window = common.choose(argument, ARGUMENTS).partition("-")
    config = common.text_to_image("CLEAR-PixArt-Sigma-XL/2", side, f"t2i{side}_drawn")
    common.clear(config, window or "r8")
    config.inherit.source = config.distill.teacher
    return config
