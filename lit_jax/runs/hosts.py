"""Operations of all processes of a job on several hosts."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

Log = Callable[[str], None]
"""A function that shows one line to the user."""


def log_on_first_process(text: str) -> None:
    """Print on process 0, so that a line appears once."""
    if jax.process_index() == 0:
        print(text, flush=True)


def barrier(name: str) -> None:
    """Wait until every process has reached this line."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def share(items: Sequence[T]) -> list[T]:
    """Return every n-th of `items`: the share of this process."""
    return list(items[jax.process_index() :: jax.process_count()])


def on_first_process(work: Callable[[], T]) -> T:
    """Return the result of `work()`, which runs on process 0 only, on every process.

    An exception of `work` is raised on every process as well, so that none of them waits in a
    barrier for a process that has stopped. The result must be picklable.
    """
    if jax.process_count() == 1:
        return work()
    outcome: tuple[Any, Exception | None] = None, None
    if jax.process_index() == 0:
        try:
            outcome = work(), None
        except Exception as error:
            outcome = None, error
    result, failure = pickle.loads(_broadcast(_pickled(outcome)))
    if failure is not None:
        raise failure
    return result


def _pickled(outcome: tuple[Any, Exception | None]) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception:  # an exception that holds what cannot be pickled
        return pickle.dumps((None, RuntimeError(f"process 0 failed: {outcome[1]!r}")))


def _broadcast(content: bytes) -> bytes:
    """Return the bytes of process 0 on every process."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    data = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        data[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(data)).astype(np.uint8).tobytes()


# A network file system may keep reporting a file as missing for a while after it was written.
SECONDS_TO_APPEAR = 120.0


def await_files(paths: Iterable[Path]) -> None:
    """Wait for files that other processes have written; raise ValueError if they do not appear."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    for path in paths:
        while not path.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{path}, written by another host, did not appear within"
                    f" {SECONDS_TO_APPEAR:.0f} s; all hosts must share the folder. Run the same"
                    " command again to make what is missing"
                )
            time.sleep(0.5)
