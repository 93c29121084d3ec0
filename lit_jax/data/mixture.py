"""Batches of one bucket each, mixed so that every image is seen at the same rate.

The bucket of global batch k is drawn from (seed, k) alone, with a probability proportional to its
number of images. The number of earlier draws of that bucket is the index of the batch within the
bucket. So the position in the stream remains one integer, independent of hosts and workers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

# Global batches whose buckets are drawn together.
BLOCK = 4096


class Schedule:
    """Bucket of every global batch, for `counts` images per bucket."""

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        self._bounds, self._seed = tuple(np.cumsum(counts).tolist()), seed
        # Block -> number of earlier batches of each bucket. Two threads may compute the same entry;
        # the result is the same.
        self._before = {0: np.zeros(len(counts), np.int64)}

    def at(self, position: int) -> tuple[int, int]:
        """Return the bucket of global batch `position`, and how many batches of that bucket came
        before.

        Draws the missing blocks up to `position`: about 0.1 s for a million batches.
        """
        block, row = divmod(position, BLOCK)
        buckets = _drawn(self._bounds, self._seed, block)
        bucket = int(buckets[row])
        earlier = int(np.count_nonzero(buckets[:row] == bucket))
        return bucket, int(self._before_block(block)[bucket]) + earlier

    def _before_block(self, block: int) -> np.ndarray:
        known = block
        while known not in self._before:
            known -= 1
        counts = self._before[known]
        for number in range(known, block):
            drawn = _drawn(self._bounds, self._seed, number)
            counts = counts + np.bincount(drawn, minlength=len(counts))
        self._before[block] = counts
        return counts


@functools.lru_cache(maxsize=8)
def _drawn(bounds: tuple[int, ...], seed: int, block: int) -> np.ndarray:
    """Return the buckets of the batches of a block: int [BLOCK]."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, block], np.uint64)))
    return np.searchsorted(bounds, generator.integers(bounds[-1], size=BLOCK), side="right")


class Reshuffled:
    """Endless source for grain: the given rows of `records`, reshuffled in every epoch. Grain's own
    shuffling takes milliseconds per record for a few records, as many buckets hold."""

    def __init__(self, records: Sequence[bytes], rows: np.ndarray, seed: int) -> None:
        self._records, self._rows, self._seed = records, rows, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> bytes:
        epoch, place = divmod(index, len(self._rows))
        order = _order(len(self._rows), self._seed, epoch)
        return self._records[int(self._rows[order[place]])]


# Of 40 buckets, the epoch that ends and the one that begins.
@functools.lru_cache(maxsize=80)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of 0 .. count - 1: uint32 [count]."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(np.arange(count, dtype=np.uint32))


class Mixture:
    """The endless global stream, cut into pieces of one host's size, as a source for grain.

    `pieces` holds one stream per bucket, cut in the same way: piece n H + h is the part of host h
    of H of the n-th batch.
    """

    def __init__(
        self,
        pieces: Sequence[grain.MapDataset[Any]],
        counts: Sequence[int],
        seed: int,
        hosts: int,
    ) -> None:
        self._pieces, self._schedule, self._hosts = pieces, Schedule(counts, seed), hosts

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        position, host = divmod(index, self._hosts)
        bucket, occurrence = self._schedule.at(position)
        return self._pieces[bucket][occurrence * self._hosts + host]
