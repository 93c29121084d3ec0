"""The persistent compilation cache: compiled programs are kept between runs. Free of jax.

jax reads its settings from the environment when it is imported; variables that are set already
stay. Programs with host callbacks are never kept by jax.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

FOLDER, MIN_SECONDS = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
OURS = "LIT_JAX_COMPILATION_CACHE"
OFF = "off"


def enable_cache(choice: str = "", environment: MutableMapping[str, str] = os.environ) -> str:
    """Turn the cache on before jax is imported; return its folder, "" when it is off.

    `choice` is a folder, "off", or "" for LIT_JAX_COMPILATION_CACHE, which holds the same, or the
    cache folder of the user. A folder that cannot be written turns the cache off.
    """
    choice = choice or environment.get(OURS, "")
    if choice == OFF:
        environment.pop(FOLDER, None)
        return ""
    if FOLDER in environment and not choice:
        return environment[FOLDER]
    try:
        folder = Path(choice).expanduser() if choice else default_folder(environment)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        return ""
    environment[FOLDER] = str(folder)
    environment.setdefault(MIN_SECONDS, "0.2")
    return str(folder)


def default_folder(environment: MutableMapping[str, str]) -> Path:
    """Return ~/.cache/lit_jax/xla/VERSION-CPU; homes are shared by hosts of different processors,
    whose programs must not mix."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lit_jax" / "xla" / f"{metadata.version('jaxlib')}-{_processor()}"


def _processor() -> str:
    """Return a short hash of the model and the features of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "any"
    wanted = ("model name", "flags", "Features", "CPU part")
    kept = sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]
