"""Set-up shared by all tests: eight virtual CPU devices and one compilation cache per process.

Everything here has to happen before jax is imported for the first time, so the environment is
written at import time of this file, which pytest loads before any test module. Programs that the
tests start inherit it.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

DEVICE_COUNT = 8
DEVICE_FLAG = "--xla_force_host_platform_device_count"

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could choose the CPU devices")

os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICE_FLAG not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, f"{DEVICE_FLAG}={DEVICE_COUNT}"])

# TensorFlow (only behind the TensorBoard writer and TFDS) would print its start-up log per process.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Programs that tests start compile what the tests already compiled. The cache lives as long as this
# process: compiled CPU code depends on the machine, and jax writes entries without a lock, so one
# folder for two machines, two runs, or two workers of a run is not safe.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    cache_dir = tempfile.mkdtemp(prefix="lit_jax_test_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache_dir
    atexit.register(shutil.rmtree, cache_dir, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Otherwise the programs of all modules stay in memory: gigabytes over the whole suite."""
    yield
    jax.clear_caches()
    gc.collect()
