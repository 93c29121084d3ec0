"""Killing a job at random moments, and what has to be true afterwards.

Jobs run in processes that are forked from a server in which the imports are done already, so that
a kill costs a fraction of a second and not the start of an interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

JOBS = ("train", "sample", "encode", "evaluate", "generate", "self_generate")
PRELOADED = [f"lit_jax.commands.{job}.job" for job in JOBS]
_SECONDS_TO_FINISH = 300

Job = Callable[[Path], None]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`: relative path -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def survives_kills(
    job: Job, folder: Path, kills: int, *, seed: int, devices: int = 1, per_output: int = 3
) -> int:
    """Runs `job(out)` to its end once, then again and again with SIGKILL at random moments, until
    at least `kills` have hit a running process; returns how many did.

    An output is killed up to `per_output` times and then finished; all of its files must be, byte
    for byte, those of the uninterrupted run. `job` must be picklable (a module-level function or a
    partial of one) and is called with the same output folder every time, as a person would run the
    same command again. `seed` draws the moments: put it into the test's failure message.
    """
    chance = random.Random(seed)
    _finish(job, folder / "whole", folder, devices)
    # A second run has the compiled programs in the cache, as those that are killed.
    began = time.perf_counter()
    _finish(job, folder / "again", folder, devices)
    duration = time.perf_counter() - began
    expected = contents(folder / "whole")
    assert expected, "the job wrote nothing"
    _same(expected, contents(folder / "again"), "a second run")

    hits = attempts = 0
    while hits < kills:
        attempts += 1
        assert attempts < 5 * kills, f"only {hits} of {kills} kills hit the job (seed {seed})"
        out = folder / f"killed_{attempts}"
        for _ in range(per_output):
            process = _start(job, out, folder, devices)
            process.join(chance.uniform(0.05, 1.0) * duration)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            hits += process.exitcode == -signal.SIGKILL
        _finish(job, out, folder, devices)
        _same(expected, contents(out), f"attempt {attempts}, seed {seed}, after kills")
    return hits


def _start(
    job: Job, out: Path, folder: Path, devices: int
) -> multiprocessing.context.ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_child, args=(job, out, str(folder / "cache"), devices))
    process.start()
    return process


def _finish(job: Job, out: Path, folder: Path, devices: int) -> None:
    process = _start(job, out, folder, devices)
    process.join(_SECONDS_TO_FINISH)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{out.name} did not finish in {_SECONDS_TO_FINISH} s")
    log = Path(f"{out}.log")
    text = log.read_text() if log.exists() else ""
    assert process.exitcode == 0, f"{out.name}: exit status {process.exitcode}\n{text}"


def _child(job: Job, out: Path, cache: str, devices: int) -> None:
    # Nothing has asked for a device before: the server only imports.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with open(f"{out}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            job(out)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    # Threads of libraries must not keep a finished job alive, as they do not in a command.
    os._exit(0)


def _same(expected: dict[str, bytes], found: dict[str, bytes], when: str) -> None:
    assert found.keys() == expected.keys(), (
        f"{when}: files {sorted(found.keys() ^ expected.keys())} differ"
    )
    differing: Iterable[str] = [name for name in expected if found[name] != expected[name]]
    assert not differing, f"{when}: other bytes in {differing}"
