"""Limit on open files. The files of a data set stay open after the first read."""

from __future__ import annotations

import resource

# Other files of a job: libraries, checkpoints, sockets, device handles.
OTHER_FILES = 512


def allow_open_files(count: int) -> None:
    """Raise the soft limit of this process, usually 1024 files, to `count` + OTHER_FILES.

    Raises ValueError when the hard limit is lower.
    """
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"the data set and the job keep {needed} files open, the limit is {hard}; raise it"
            f" (ulimit -n {needed}), or write the data set in fewer files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
