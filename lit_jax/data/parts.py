"""Input of the pipeline: endless streams of single examples, one for every size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from lit_jax.data.stream import Arrays, Batch
from lit_jax.data.transforms import Example

LABEL: Arrays = {"label": ((), np.dtype(np.int32))}


@dataclass(frozen=True)
class Part:
    """The endless, shuffled stream of the examples of one size, and the arrays of one of them.
    `count` is how many there are, which is asked for when there are several sizes."""

    dataset: grain.MapDataset[Example]
    arrays: Arrays
    count: int = 0


@dataclass(frozen=True)
class Examples:
    """The examples of a data set. `finish` makes the named arrays of a batch what a model takes.
    `identity` says which data it is."""

    parts: Sequence[Part]
    finish: Callable[..., Batch]
    identity: Mapping[str, str]


class Seeds(NamedTuple):
    """One for everything that is drawn."""

    order: int
    mirror: int
    caption: int
    buckets: int


def seeds(*numbers: int) -> Seeds:
    """Return seeds that have nothing to do with each other, nor with those of other numbers."""
    words = np.random.SeedSequence(numbers).generate_state(4, dtype=np.uint32)
    return Seeds(*(int(word) for word in words))
