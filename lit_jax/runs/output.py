"""Resumable output: a folder or a file that belongs to one request and is filled shard by shard.

Two layouts. A folder holds everything; a file has a work folder beside it while it is unfinished.

    OUT/request.json         the request                OUT.work/request.json
    OUT/shards/KEY.npz       unfinished work            OUT.work/KEY.npz
    OUT/.lock                the job that writes        OUT.work/.lock
    OUT/sample.json          completed by this record   OUT

The same command resumes, with any number of hosts. Every process of a job makes the same calls.
"""

from __future__ import annotations

import contextlib
import glob
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from lit_jax.runs.hosts import Log, await_files, barrier, log_on_first_process, on_first_process
from lit_jax.runs.lock import Lock
from lit_jax.runs.requests import (
    REQUEST,
    differences,
    plain,
    read_request,
    require_same_request,
    require_space,
)
from lit_jax.storage import files

SHARDS = "shards"
REMEDY = "choose another --out, or remove it"

Finish = Callable[[], Mapping[str, Any] | None]
T = TypeVar("T")


@dataclass
class Output:
    """An open output; a context manager that releases its lock.

    path: folder or file of the finished output. home: folder that holds request and lock. work:
    folder of the shards. record: file that completes the output. ignore: entries of the request,
    "group.name", that are informational. foreign: names that may not exist in a folder without a
    request; None for all names.
    """

    path: Path
    request: dict[str, Any]
    home: Path
    work: Path
    record: Path
    ignore: Collection[str] = ()
    remedy: str = REMEDY
    foreign: Collection[str] | None = None
    log: Log = log_on_first_process
    done: bool = False
    _lock: Lock | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        path: Path | str,
        request: Mapping[str, Any],
        record: str,
        work: str = SHARDS,
        **options: Any,
    ) -> Output:
        """Open the folder `path` for `request`; nothing is written yet besides the lock.

        Shards lie in the folder `work` inside it.

        options: `ignore`, `remedy`, `foreign` and `log` as in the class. Raises ValueError, on all
        processes, for a folder of another request, naming every difference, and for one that
        another job is writing.
        """
        folder = Path(path).expanduser()
        places = folder, plain(request), folder, folder / work, folder / record
        return cls(*places, **options)._opened()

    @classmethod
    def beside(
        cls, path: Path | str, request: Mapping[str, Any], work: str = "", **options: Any
    ) -> Output:
        """Open the file `path`; shards lie in the folder `work` beside it, by default PATH.work.

        A finished JSON file is compared by its entry "request".
        """
        file = Path(path).expanduser()
        home = file.with_name(work or f"{file.name}.work")
        return cls(file, plain(request), home, home, file, **options)._opened()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. Shards stay for the next run."""
        if self._lock is not None:
            self._lock.release()

    def _opened(self) -> Output:
        self.done = on_first_process(self._open)
        return self

    def _open(self) -> bool:
        """Check the place before and after it is locked: a refused request changes nothing."""
        if self._is_done() and not self._has_work():
            return True
        self._lock = Lock(self.home, self.log)
        self._lock.acquire()
        try:
            if self._is_done():
                self._remove_work()
                return True
        except BaseException:
            self.release()
            raise
        return False

    # --- the request ---

    def _is_done(self) -> bool:
        """Return whether the record of this request exists; raise ValueError for another one."""
        if self.home == self.path and self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; --out is a folder")
        if self.home != self.path and self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; --out is a file")
        if self.home != self.path and self.record.exists():
            self._require_same(self.record)
            return True
        request = self.home / REQUEST
        if self.home != self.path:
            self._require_same(request)
        elif not require_same_request(request, self.request, self.remedy, self.ignore):
            self._require_no_foreign_files()
            return False
        return self.record.exists()

    def _require_same(self, path: Path) -> None:
        """Raise ValueError when a JSON file belongs to another request.

        Finished files, and request files of earlier versions, hold the request in an entry.
        """
        content = read_request(path, self.remedy)
        if content is None:
            if self.home.exists() and any(p.name[0] != "." for p in self.home.iterdir()):
                raise ValueError(
                    f"{self.home} exists and is no work folder of this command; move it"
                )
            return
        stored = content.get("request", None if path == self.record else content)
        if not isinstance(stored, dict):
            raise ValueError(f"{path} is no result of this command; choose another --out")
        if differing := differences(stored, self.request, self.ignore):
            place = path if path == self.record else self.home
            raise ValueError(
                f"{place} belongs to another request: {'; '.join(differing)}; {self.remedy}"
            )

    def _require_no_foreign_files(self) -> None:
        if not self.path.is_dir():
            return
        names = sorted(p.name for p in self.path.iterdir() if not _is_hidden(p))
        if self.foreign is not None:
            names = [name for name in names if name in self.foreign]
        if names:
            raise ValueError(
                f"{self.path} holds {', '.join(names[:3])} and no {REQUEST}; {self.remedy}"
            )

    # --- shards ---

    def missing(self, keys: Sequence[T], has: Callable[[T], bool]) -> list[T]:
        """Return the keys for which `has` is False on process 0."""
        return on_first_process(lambda: [key for key in keys if not has(key)])

    def begin(self, needed: int = 0, what: str = "", remedy: str = "make room") -> None:
        """Write the request and remove files that killed processes left unfinished.

        Raises ValueError, before anything is written, when fewer than `needed` bytes are free.
        """
        on_first_process(lambda: self._begin(needed, what, remedy))

    def _begin(self, needed: int, what: str, remedy: str) -> None:
        require_space(self.home, needed, what, remedy)
        remove_leftovers(self.home, self.path)
        if not (self.home / REQUEST).is_file():
            files.write_json(self.home / REQUEST, self.request)

    def file(self, key: str, suffix: str = ".npz") -> Path:
        """Return the path of a shard."""
        return self.work / f"{key}{suffix}"

    def has(self, key: str) -> bool:
        return self.file(key).exists()

    def save(self, key: str, **arrays: np.ndarray) -> None:
        """Write a shard, which appears whole or not at all."""
        with files.atomic_path(self.file(key)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self, key: str, *names: str) -> dict[str, np.ndarray]:
        """Return the arrays of a shard, or those in `names`. Raises ValueError for a damaged
        one."""
        path = self.file(key)
        if jax.process_count() > 1:
            await_files([path])
        try:
            with np.load(path) as arrays:
                return {name: arrays[name] for name in names or arrays.files}
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); remove it and run the same command again"
            ) from error

    # --- completion ---

    def close(self, finish: Finish) -> None:
        """Complete the output once all processes have written their shards.

        `finish()` runs on process 0: it reads the shards, writes the final files, and returns the
        content of the record, or None if it has written the record itself. Then the shards are
        removed and the lock is released.
        """
        barrier(f"{self.path}: shards")
        on_first_process(lambda: self._close(finish))
        self.done = True

    def _close(self, finish: Finish) -> None:
        record = finish()
        if record is not None:
            # The temporary file lies in the work folder: a kill leaves nothing beside a file.
            temporary = self.home / f".{self.record.name}.tmp"
            files.write_json(temporary, record)
            temporary.replace(self.record)
        self._remove_work()

    @property
    def _top(self) -> Path:
        """Folder of all work: of the shards, and of what lies between it and the home."""
        parts = self.work.relative_to(self.home).parts
        return self.home / parts[0] if parts else self.home

    def _has_work(self) -> bool:
        return self._top.exists()

    def _remove_work(self) -> None:
        """Remove shards and lock. The request of a work folder goes last: it says what the folder
        is."""
        if self.home == self.path:
            shutil.rmtree(self._top, ignore_errors=True)
            self.release()
            return
        for entry in list(self.home.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != REQUEST and not _is_hidden(entry):
                entry.unlink()
        (self.home / REQUEST).unlink(missing_ok=True)
        self.release()
        with contextlib.suppress(OSError):
            self.home.rmdir()


def remove_leftovers(folder: Path, *finals: Path) -> None:
    """Remove temporary files that killed processes left in `folder`, and beside the files `finals`.

    Call it on one process, while nobody writes."""
    places: list[Iterable[Path]] = [folder.rglob(".*.tmp")]
    places += [final.parent.glob(f".{glob.escape(final.name)}.*.tmp") for final in finals]
    for path in (path for place in places for path in list(place)):
        if not path.name.startswith(".lock."):
            path.unlink(missing_ok=True)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")
