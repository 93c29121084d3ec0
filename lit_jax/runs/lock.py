"""Lock of a folder, so that two jobs never write into the same place.

The lock is the file `.lock` in the folder. One atomic operation creates it together with its
content, which names the process that holds it. The holder touches it every few seconds. A lock is
stale when its process has ended (same host) or when it is not touched any more (other host); the
next job takes a stale lock over. Process 0 of a job on several hosts holds the lock for all of
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_jax.runs.hosts import Log, log_on_first_process, on_first_process

LOCK = ".lock"
HEARTBEAT, STALE_AFTER = 10.0, 90.0  # seconds


class InUseError(ValueError):
    """A folder is locked by another process."""


@dataclass(frozen=True)
class Holder:
    """Content of a lock file. `machine` tells hosts, boots and containers of one name apart."""

    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    @classmethod
    def current(cls) -> Holder:
        """Return the entry of this process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        pid = os.getpid()
        started = _start_time(pid) or ""
        return cls(socket.gethostname(), _machine(), pid, started, since, secrets.token_hex(8))


@contextlib.contextmanager
def locked(folder: Path, log: Log = log_on_first_process) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing, on behalf of all processes of a job.

    Every process enters the block. Raises InUseError, on all of them, when another job holds it.
    """
    lock = Lock(folder, log)
    on_first_process(lock.acquire)
    try:
        yield
    finally:
        lock.release()


class Lock:
    """Lock of `folder`; `acquire` on process 0, `release` anywhere."""

    def __init__(self, folder: Path, log: Log = log_on_first_process) -> None:
        self._folder, self._path, self._log = folder, folder / LOCK, log
        self._holder: Holder | None = None
        self._created: list[Path] = []
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Create the lock file, or take over a stale one. Raises InUseError for a live one."""
        missing = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
        holder = Holder.current()
        stale = _take(self._path, holder, self._folder)
        self._created, self._holder = missing, holder
        if stale is not None:
            self._log(
                f"note: took over the lock of {self._folder}: process {stale.pid} on host"
                f" {stale.host}, which held it since {stale.since}, has ended"
            )
        threading.Thread(target=self._touch, daemon=True, name="lock").start()

    def release(self) -> None:
        """Remove the lock file if this process holds it, and folders that it has created and left
        empty."""
        holder, self._holder = self._holder, None
        self._stop.set()
        if holder is None or holder.pid != os.getpid():
            return
        if _read(self._path) == holder:
            for left in (*self._folder.glob(f"{LOCK}.*"), self._path):  # of killed processes
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: the job has written something
            for folder in self._created:
                folder.rmdir()

    def _touch(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _take(path: Path, holder: Holder, folder: Path) -> Holder | None:
    """Write `holder` into the lock file `path`; return the stale holder that it replaces, if any.

    A stale lock is replaced under a second lock, whose name contains the token of the stale holder.
    Two processes that find the same stale lock therefore never both replace it, and neither of them
    replaces the lock of the other.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{holder.token}.tmp")
        try:
            mine.write_text(json.dumps(asdict(holder)), encoding="utf-8")
            if _create(mine, path):
                return None
            found = _read(path)
            if found is None:
                continue  # released, or not yet complete
            _require_stale(path, mine, found, folder)
            takeover = path.with_name(f"{LOCK}.{found.token}")
            _take(takeover, holder, folder)
            try:
                if _read(path) == found:
                    os.replace(mine, path)
                    return found
            finally:
                takeover.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # the holder removed the folder together with its lock
        finally:
            mine.unlink(missing_ok=True)


def _create(content: Path, path: Path) -> bool:
    """Create `path` with the content of a file; return False if it exists."""
    try:
        os.link(content, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(content.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> Holder | None:
    """Return the holder of a lock; None if there is no lock.

    A file without a holder is from a file system without hard links, and just being written or left
    by a process that was killed at that moment.
    """
    deadline = time.monotonic() + 2.0
    while True:
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            if time.monotonic() > deadline:
                return Holder("unknown", "", 0, "", "unknown", f"damaged{len(path.name)}")
            time.sleep(0.05)


def _require_stale(path: Path, clock: Path, found: Holder, folder: Path) -> None:
    """Return when the lock is stale; raise InUseError when its holder lives.

    `clock` is a new file beside the lock: both times come from the clock of the file system. The
    lock of another host is watched until it is touched or counts as stale.
    """
    in_use = InUseError(
        f"{folder} is in use by process {found.pid} on host {found.host} since {found.since};"
        f" wait for it to end, or choose another place"
    )
    if found.machine == _machine():
        if _start_time(found.pid) == found.started:
            raise in_use
        return
    first = path.stat().st_mtime
    while _read(path) == found:
        os.utime(clock)
        touched = path.stat().st_mtime
        if clock.stat().st_mtime - touched > STALE_AFTER:
            return
        if touched != first:
            raise in_use
        time.sleep(1.0)


def _machine() -> str:
    """Return a text that two processes share if one can see the other by its number."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return when a process has started, None if it has ended. "" where the system does not say."""
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in parentheses, may contain blanks.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
