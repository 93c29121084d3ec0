"""Training batches as an endless stream with a position, in the process or from worker processes.

The position is one integer, the number of global batches taken. It does not depend on hosts, worker
processes or threads, so a stream can be resumed with another number of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]
Arrays = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name -> shape and dtype."""

# Batches read ahead, and threads that read them: in the process, and in each worker process, whose
# batches also wait in shared memory. Grain's default (500 elements, here batches) is meant for
# single records; the order of the batches does not depend on any of these numbers.
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
_READ_IN_WORKER = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
_BATCHES_PER_WORKER = 2


class BatchStream(Iterator[Batch]):
    """This host's rows of global batch `position`, `position` + 1, ... without end.

    `batches` is the endless global stream cut into pieces of one host's size: host h of n reads
    the pieces h, h + n, h + 2 n, ... `shapes` lists the possible arrays of a global batch, known
    before a record is read, and `arrays` is the first of them; `identity` identifies the data and
    must be the same when a run resumes.

    With `workers` processes the batches and their order are the same. The first `next` starts the
    processes and reads; `close` ends the processes, and the next `next` starts them again.
    """

    def __init__(
        self,
        batches: grain.MapDataset[Batch],
        shapes: Sequence[Arrays],
        identity: Mapping[str, str],
        *,
        shard_index: int = 0,
        shard_count: int = 1,
        workers: int = 0,
    ) -> None:
        self.shapes = tuple(shapes)
        self.identity = identity
        self._batches = batches
        self._shard = shard_index, shard_count
        self._workers = workers
        self._position = 0
        self._reader: Any = None

    @property
    def arrays(self) -> Arrays:
        """The first of `shapes`, the only one when the examples have one size."""
        return self.shapes[0]

    @property
    def position(self) -> int:
        """Global batches taken so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Make global batch `position` (0-based) the next one, without reading the batches before
        it. Raises ValueError below 0."""
        if position < 0:
            raise ValueError(f"data position is {position}; it must be at least 0")
        self.close()
        self._position = position

    def __next__(self) -> Batch:
        if self._reader is None:
            with _signals_left_to_the_job():
                self._reader = iter(self._from_here())
                batch: Batch = next(self._reader)
        else:
            batch = next(self._reader)
        self._position += 1
        return batch

    def close(self) -> None:
        """End threads and worker processes, and wait for them."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _from_here(self) -> grain.IterDataset[Batch]:
        index, count = self._shard
        mine = self._batches[self._position * count + index :: count]
        if not self._workers:
            return mine.to_iter_dataset(_READ)
        if not flags.FLAGS.is_parsed():  # grain reads flags of its own, which must be parsed
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(self._workers, _BATCHES_PER_WORKER)
        return mine.to_iter_dataset(_READ_IN_WORKER).mp_prefetch(options, _start_worker)


@contextlib.contextmanager
def _signals_left_to_the_job() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in the processes that start inside this context.

    A terminal or a scheduler sends these signals to all processes, but the job needs batches for
    its last step before the checkpoint. A process inherits the blocked signals of its parent. The
    tracker of shared memory, which Python starts with the first worker, would unblock them; so it
    is started before.
    """
    _start_quiet_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_quiet_tracker() -> None:
    """Start the tracker of shared memory without its report of leaks, which would list the batches
    that wait in shared memory at the end of a job."""
    before = os.environ.get("PYTHONWARNINGS")
    rules = ("ignore:resource_tracker:UserWarning", before)
    os.environ["PYTHONWARNINGS"] = ",".join(rule for rule in rules if rule)
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _start_worker(index: int, count: int) -> None:
    """Make a worker process end with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
