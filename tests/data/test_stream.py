"""The stream of batches: its position, its worker processes, and how those end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from lit_jax.data.stream import BatchStream


def numbered(number: int) -> dict[str, np.ndarray]:
    return {"number": np.array(number), "process": np.array(os.getpid())}


def stream(**options: int) -> BatchStream:
    """An endless stream of shuffled numbers, five per batch, each with the process that read it."""
    batches = grain.MapDataset.range(1000).shuffle(seed=1).repeat().map(numbered).batch(5)
    return BatchStream(batches, [{"number": ((5,), np.dtype(int))}], {}, **options)


def numbers(batches: BatchStream, count: int) -> list[list[int]]:
    return [next(batches)["number"].tolist() for _ in range(count)]


def test_position_counts_batches_and_seek_moves_it() -> None:
    batches = stream()
    expected = numbers(batches, 30)
    assert batches.position == 30
    for position in (7, 0, 29):
        batches.seek(position)
        assert batches.position == position
        assert numbers(batches, 1) == [expected[position]]
        assert batches.position == position + 1
    with pytest.raises(ValueError, match="data position is -1"):
        batches.seek(-1)


def test_far_position_is_reached_at_once() -> None:
    """A run of years: reading up to there would take days."""
    batches, other = stream(), stream(shard_index=1, shard_count=2)
    batches.seek(10**10 + 1)
    other.seek(5 * 10**9)
    assert numbers(batches, 1) == numbers(other, 1)


def test_workers_read_the_same_stream_and_are_gone_afterwards() -> None:
    expected = numbers(stream(), 12)
    batches = stream(workers=2)
    assert not multiprocessing.active_children()  # nothing starts before it is needed
    readers = set()
    for position in range(6):
        batch = next(batches)
        assert batch["number"].tolist() == expected[position]
        readers |= set(batch["process"].tolist())
    assert len(readers) == 2 and os.getpid() not in readers
    for reader in readers:  # neither of them must end before the job does
        status = Path(f"/proc/{reader}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], base=16)
        for number in (signal.SIGINT, signal.SIGTERM):
            assert blocked >> (number - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # and the job hears its own
    batches.close()
    assert not any(Path(f"/proc/{reader}").exists() for reader in readers)
    assert numbers(batches, 2) == expected[6:8]
    batches.close()
    assert not multiprocessing.active_children()


ORPHANS = """
import sys
sys.path.insert(0, {folder!r})
from test_stream import stream
if __name__ == "__main__":
    batches = stream(workers=2)
    print(*{{int(p) for _ in range(4) for p in next(batches)["process"]}}, flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        readers = [int(text) for text in parent.stdout.readline().split()]
        assert len(readers) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while left := [reader for reader in readers if Path(f"/proc/{reader}").exists()]:
        if time.monotonic() > deadline:
            for reader in left:
                os.kill(reader, signal.SIGKILL)
            raise AssertionError("workers outlived their parent")
        time.sleep(0.05)
