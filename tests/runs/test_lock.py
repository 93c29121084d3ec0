"""Lock of a folder: two jobs, killed jobs, jobs on other hosts."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_jax.runs import lock
from lit_jax.runs.lock import LOCK, Holder, InUseError, Lock, locked

HOLD = """
import sys, time
from pathlib import Path
from lit_jax.runs.lock import Lock
lock = Lock(Path(sys.argv[1]), print)
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock."""
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None and program.stdout.readline() == "locked\n"
    return program


def write_lock(folder: Path, age: float = 0.0, **fields: object) -> None:
    """Write the lock of a process on another host, last touched `age` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = dataclasses.replace(Holder.current(), host="far", machine="other", **fields)  # type: ignore[arg-type]
    (folder / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    then = time.time() - age
    os.utime(folder / LOCK, (then, then))


def test_lock_file_disappears_with_the_folders_it_created(tmp_path: Path) -> None:
    with locked(tmp_path / "a/out"):
        assert [path.name for path in (tmp_path / "a/out").iterdir()] == [LOCK]
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "out"):
        (tmp_path / "out/file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_another_process_is_named_and_a_killed_one_replaced(tmp_path: Path) -> None:
    program = hold(tmp_path)
    lines: list[str] = []
    try:
        wanted = (
            f"{tmp_path} is in use by process {program.pid} on host {os.uname().nodename} since"
        )
        with pytest.raises(InUseError, match=wanted):
            Lock(tmp_path).acquire()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == program.pid
    finally:
        program.kill()
        program.wait()
    with locked(tmp_path, lines.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(lines) == 1 and f"process {program.pid}" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_a_process_may_be_used_again(tmp_path: Path) -> None:
    """A living process with the recorded number but another start is another process."""
    holder = dataclasses.replace(Holder.current(), started="1")
    (tmp_path / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    with locked(tmp_path, lambda _: None):
        assert json.loads((tmp_path / LOCK).read_text())["started"] == Holder.current().started
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_host_is_stale_without_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path, age=lock.STALE_AFTER + 5)
    lines: list[str] = []
    with locked(tmp_path, lines.append):
        pass
    assert "host far" in lines[0]
    # A recent one is watched until it counts as stale.
    monkeypatch.setattr(lock, "STALE_AFTER", 2.0)
    write_lock(tmp_path)
    began = time.monotonic()
    with locked(tmp_path, lines.append):
        assert time.monotonic() - began > 1.5


def test_lock_of_another_host_with_a_heartbeat(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=77)
    timer = threading.Timer(0.5, lambda: os.utime(tmp_path / LOCK))
    timer.start()
    with pytest.raises(InUseError, match=r"process 77 on host far"):
        Lock(tmp_path).acquire()
    assert (tmp_path / LOCK).exists()


def test_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        time.sleep(0.5)
        assert (tmp_path / LOCK).stat().st_mtime > 0


@pytest.mark.parametrize("links", [True, False])
def test_unfinished_lock_file(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file, which a file system without hard links may show, counts as stale in time."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    (tmp_path / LOCK).touch()
    os.utime(tmp_path / LOCK, (0, 0))
    with locked(tmp_path, lambda _: None):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(InUseError):
            Lock(tmp_path).acquire()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_takeover(tmp_path: Path) -> None:
    """The process that replaced a stale lock was killed, before and after the replacement."""
    holder = dataclasses.replace(Holder.current(), started="1", token="old")
    claim = dataclasses.replace(holder, token="claim")
    for name, entry in (("", holder), (".old", claim), (".other", claim), (".x.tmp", claim)):
        (tmp_path / f"{LOCK}{name}").write_text(json.dumps(dataclasses.asdict(entry)))
    with locked(tmp_path, lambda _: None):
        pass
    assert list(tmp_path.iterdir()) == []


def compete(folder: Path, rounds: int, start: object, won: object) -> None:
    """Enter and leave the lock again and again; a second process inside is an error."""
    inside = folder.parent / "inside"
    start.wait()  # type: ignore[attr-defined]
    for _ in range(rounds):
        try:
            with locked(folder, lambda _: None):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                time.sleep(0.001)
                inside.unlink()
                with won.get_lock():  # type: ignore[attr-defined]
                    won.value += 1  # type: ignore[attr-defined]
        except InUseError:
            pass


@pytest.mark.parametrize("stale", [False, True])
def test_processes_that_start_at_once(tmp_path: Path, stale: bool) -> None:
    """At most one is inside at any time, also when all of them first see a stale lock."""
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(4), context.Value("i", 0)
    folder = tmp_path / "out"
    folder.mkdir()
    if stale:
        old = dataclasses.replace(Holder.current(), started="1")
        (folder / LOCK).write_text(json.dumps(dataclasses.asdict(old)))
    programs = [context.Process(target=compete, args=(folder, 50, start, won)) for _ in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
    assert [program.exitcode for program in programs] == [0] * 4
    assert won.value >= 4
    assert list(folder.iterdir()) == []
