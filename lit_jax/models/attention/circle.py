"""Counts and limits of the circular windows of CLEAR. Free of jax."""

from __future__ import annotations


def circle(window_size: int) -> list[tuple[int, int]]:
    """Return the offsets (rows, columns) at a distance strictly below `window_size`: CLEAR's
    window."""
    reach = range(1 - window_size, window_size)
    return [(y, x) for y in reach for x in reach if y * y + x * x < window_size**2]


def window_keys(window_size: int) -> int:
    """Return keys of a query whose circle lies inside the image: 193 for r = 8, 793 for r = 16."""
    return len(circle(window_size))


def window_pairs(grid: tuple[int, int], window_size: int) -> int:
    """Pair of query and key on a token grid, where the border cuts circles: the sum over offsets of
    the number of queries whose key at that offset is inside."""
    R, C = grid
    return sum(max(0, R - abs(y)) * max(0, C - abs(x)) for y, x in circle(window_size))


def attended_share(window_size: int, image_tokens: int, text_tokens: int = 0) -> float:
    """Return keys of an inner query as a share of all keys, text tokens being keys of everyone.

    CLEAR (section 1) claims 99.5% fewer attention FLOPs at 8192 x 8192 pixels: 512^2 image tokens,
    512 text tokens and r = 16 leave 0.50% of the keys.
    """
    keys = min(window_keys(window_size), image_tokens)
    return (keys + text_tokens) / (image_tokens + text_tokens)


def check_pooling(grid: tuple[int, int], factor: int | None) -> None:
    """Raise ValueError for a token grid that patches of factor x factor tokens do not fill."""
    if factor is not None and (grid[0] % factor or grid[1] % factor):
        raise ValueError(
            f"the token grid {grid[0]}x{grid[1]} does not divide into patches of down_factor"
            f" {factor} x {factor}; choose a factor of both sides, or None for no pooled tokens"
        )
