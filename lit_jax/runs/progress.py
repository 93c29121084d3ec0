"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

import jax
from tqdm import tqdm

from lit_jax.runs.hosts import Log


def duration(seconds: float) -> str:
    """Return a time as text: 12.3 s, 4:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Meter of `total` units of work.

        with Progress("VAE", 100, "image", log) as progress:
            progress.advance(8)

    `steps` is for work that reports steps and counts units: every call `progress(step)`, as a
    sampler makes it from a host callback, stands for total / steps units. The speed is measured
    from the first report on, because compilation comes before it.
    """

    INTERVAL = 15.0  # seconds between lines

    def __init__(self, name: str, total: int, unit: str, log: Log, steps: int | None = None):
        self._name, self._total, self._unit, self._log = name, total, unit, log
        self._per_call = total / steps if steps else 1.0
        self._done = self._new = self._first = 0.0  # all units, those of this run, first report
        self._began = self._last = self._since = time.perf_counter()
        self._lock = threading.Lock()  # callbacks come from other threads
        shown = sys.stderr.isatty() and jax.process_index() == 0
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} "
        layout += "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        self._bar = tqdm(total=total, desc=name, unit=unit, bar_format=layout) if shown else None

    def __enter__(self) -> Progress:
        return self

    def __call__(self, step: object = None) -> None:
        """Count one step; the argument is ignored."""
        self.advance(self._per_call)

    def advance(self, units: float = 1, note: str = "") -> None:
        """Count `units` of work; `note` is shown beside the count."""
        with self._lock:
            now = time.perf_counter()
            if not self._new:
                self._since, self._first, self._last = now, units, now
            self._done += units
            self._new += units
            if self._bar is not None:
                self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(units)
            elif now - self._last >= self.INTERVAL and round(self._done) < self._total:
                self._last = now
                self._log(f"  {self}{f', {note}' if note else ''}")

    def found(self, units: float) -> None:
        """Count units of an earlier run, which do not count in the speed."""
        with self._lock:
            self._done += units
            if self._bar is not None:
                self._bar.initial += units
                self._bar.last_print_n += units
                self._bar.n += units

    def speed(self) -> str:
        """Return speed and remaining time as text: 12.3 images/s, ETA 1:02:03."""
        now = time.perf_counter()
        units, seconds = self._new - self._first, now - self._since
        if not units:  # one report is all there is
            units, seconds = self._new, now - self._began
        per_second = units / max(seconds, 1e-9)
        if not per_second:
            return "no speed yet"
        left = max(self._total - self._done, 0) / per_second
        return f"{per_second:.3g} {self._unit}s/s, ETA {duration(left)}"

    def __str__(self) -> str:
        done = f"{int(self._done + 1e-6):,}/{self._total:,}"
        return f"{self._name}: {done} {self._unit}s, {self.speed()}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.effects_barrier()  # compiled loops may still have steps to report
        if self._bar is not None:
            self._bar.close()
