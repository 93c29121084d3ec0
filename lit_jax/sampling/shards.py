"""Shards: fixed ranges of a set of images, whatever the number of processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shards:
    """The shards of `count` images, `size` images each (the last one may have fewer)."""

    count: int
    size: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def span(self, number: int) -> tuple[int, int]:
        """Return the first image of a shard, and the one after its last."""
        return number * self.size, min((number + 1) * self.size, self.count)

    def name(self, number: int) -> str:
        return f"{number:05d}-of-{len(self):05d}"
