"""A bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import jax
from tqdm import tqdm

from lit_jax.runs.hosts import Log


def duration(seconds: float) -> str:
    """Return 12.3 s, 4:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """Counts `total` steps of something; `with Bar(...) as bar: bar()` after every step.

    Calls take one argument that is not looked at, as the progress of a sampler gives one.
    """

    INTERVAL = 15.0  # seconds between lines

    def __init__(self, name: str, total: int, unit: str, log: Log) -> None:
        self._name, self._total, self._unit, self._log = name, total, unit, log
        self._done = 0
        self._began = self._last = time.perf_counter()
        shown = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(total=total, desc=name, unit=unit) if shown else None

    def __enter__(self) -> Bar:
        return self

    def __call__(self, step: object = None) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            return
        now = time.perf_counter()
        if now - self._last >= self.INTERVAL and self._done < self._total:
            self._last = now
            left = (now - self._began) / self._done * (self._total - self._done)
            self._log(
                f"  {self._name}: {self._done}/{self._total} {self._unit}s, ETA {duration(left)}"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.effects_barrier()  # the steps it still has to hear of
        if self._bar is not None:
            self._bar.close()
