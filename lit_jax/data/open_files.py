"""Room for the files of a data set, all of which stay open once they were read from."""

from __future__ import annotations

import resource

# Files a job keeps open beside them: libraries, checkpoints, sockets, device handles.
OTHER_FILES = 512


def allow_open_files(count: int) -> None:
    """Raise this process's own limit, usually 1024 files, to `count` and what a job needs beside.

    Raises ValueError when the system does not allow as many.
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
