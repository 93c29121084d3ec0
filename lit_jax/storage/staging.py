"""Folders that appear whole under their name or not at all.

A folder is filled beside its place under a hidden name and then takes the place in one step. What
stood there before is exchanged with it in the same step, so that at no moment nothing is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

# renameat2 of Linux: a rename that refuses to replace, and one that swaps two names.
_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill; it takes the name `path` when the block ends without an error, and
    vanishes otherwise. The caller has checked that an existing `path` may be replaced.

    Raises ValueError when `path` appears in the meantime and `overwrite` is False.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"\W", "_", socket.gethostname())
    staged = path.with_name(f".{path.name}.{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        staged.mkdir()
        yield staged
        replace_folder(staged, path, overwrite)
    finally:
        # After an exchange this is what stood there before.
        shutil.rmtree(staged, ignore_errors=True)


def replace_folder(staged: Path, path: Path, overwrite: bool) -> None:
    """Give `staged` the name `path`; with `overwrite` an existing folder gets the name `staged`.

    Raises ValueError when `path` exists and `overwrite` is False.
    """
    if overwrite and path.exists():
        if not _renameat2(staged, path, _EXCHANGE):
            _exchange_in_two_steps(staged, path)
        return
    try:
        if not _renameat2(staged, path, _NOREPLACE):
            os.rename(staged, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise ValueError(
            f"{path} appeared while it was being written; pass --overwrite (overwrite=True) to"
            " replace it"
        ) from error


def leftovers(path: str | Path) -> list[Path]:
    """Return folders beside `path` that killed writers of it left: their process on this host is
    gone."""
    path = Path(path).absolute()
    host = re.sub(r"\W", "_", socket.gethostname())
    name = re.compile(rf"\.{re.escape(path.name)}\.{host}-(\d+)-[0-9a-f]{{8}}\.tmp")
    if not path.parent.is_dir():
        return []
    found = [(entry, name.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    return sorted(entry for entry, match in found if match and not _is_running(int(match[1])))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Return whether the system could do it; raise OSError when it could, but the rename failed."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(source), os.fsencode(target)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def _exchange_in_two_steps(staged: Path, path: Path) -> None:
    """Exchange two folders on a file system without an exchange; after a failure the old one is put
    back."""
    aside = staged.with_suffix(".old")
    os.rename(path, aside)
    try:
        os.rename(staged, path)
    except BaseException:
        os.rename(aside, path)
        raise
    os.rename(aside, staged)
