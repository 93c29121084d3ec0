"""Input of the pipeline: endless streams of single examples, one for every size of images."""

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
class SizeStream:
    """The endless, shuffled stream of the examples of one size, and the arrays of one example.
    `count` is the number of distinct examples; it weighs the sizes when there are several."""

    dataset: grain.MapDataset[Example]
    arrays: Arrays
    count: int = 0


@dataclass(frozen=True)
class Examples:
    """The examples of a data set. `finish` converts the named arrays of a batch to the input of a
    model. `identity` must be the same when a run resumes."""

    sizes: Sequence[SizeStream]
    finish: Callable[..., Batch]
    identity: Mapping[str, str]


class Seeds(NamedTuple):
    """One seed for each kind of random choice."""

    order: int
    mirror: int
    caption: int
    buckets: int


def seeds(*numbers: int) -> Seeds:
    """Return seeds that are independent of each other and of those of other numbers."""
    words = np.random.SeedSequence(numbers).generate_state(4, dtype=np.uint32)
    return Seeds(*(int(word) for word in words))
