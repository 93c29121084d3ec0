"""What the processes of a job on several hosts do together."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

Say = Callable[[str], None]
"""Tells the user something."""


def say_on_first_process(text: str) -> None:
    """Prints on process 0, so that a line appears once."""
    if jax.process_index() == 0:
        print(text, flush=True)


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
