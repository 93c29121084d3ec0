"""Operations of all processes of a job on several hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

Log = Callable[[str], None]
"""Tells the user something."""


def log_on_first_process(text: str) -> None:
    """Print on process 0, so that a line appears once."""
    if jax.process_index() == 0:
        print(text, flush=True)


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def as_first_process_sees(found: np.ndarray) -> np.ndarray:
    """Return `found` of process 0, on all of them: a network file system may show them different
    things, and what they do together must not depend on it."""
    return np.asarray(multihost_utils.broadcast_one_to_all(found))


# What other hosts wrote may show late on a network file system, which remembers what was missing.
SECONDS_TO_APPEAR = 120.0


def await_files(paths: Iterable[Path]) -> None:
    """Wait for files that other processes have written. Raises ValueError when they do not show up:
    the hosts do not share the folder."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    for path in paths:
        while not path.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{path}, which another host wrote, is not there; all hosts must share the"
                    " folder. The same command makes what is missing"
                )
            time.sleep(0.5)
