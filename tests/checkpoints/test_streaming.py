"""Parameters that are written batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from lit_jax.checkpoints import streaming
from lit_jax.checkpoints.streaming import UnreadLeaf, batches, write_unread


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 10, []),
        ([4, 6, 1], 10, [[0, 1], [2]]),
        ([4, 7, 1], 10, [[0], [1, 2]]),
        ([11, 1, 12, 10], 10, [[0], [1], [2], [3]]),
        ([0, 0, 10, 0], 10, [[0, 1, 2, 3]]),
    ],
)
def test_batches(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    assert batches(sizes, limit) == expected


def test_a_batch_never_exceeds_the_limit() -> None:
    rng = np.random.default_rng(0)
    sizes = [int(size) for size in rng.integers(0, 30, 200)]
    found = batches(sizes, 20)
    assert [n for batch in found for n in batch] == list(range(200))
    sums = [sum(sizes[n] for n in batch) for batch in found]
    assert all(total <= 20 or len(batch) == 1 for total, batch in zip(sums, found, strict=True))
    # None of them could have taken the next leaf too.
    firsts = [sizes[batch[0]] for batch in found[1:]]
    assert all(total + size > 20 for total, size in zip(sums, firsts, strict=False))


def test_leaves_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the default limit the module's own constant; what is written is an ordinary checkpoint."""
    events: list[str] = []
    original = streaming.ocp.type_handlers.NumpyHandler.serialize

    async def written(self: object, values: list, *args: object) -> object:
        events.append(f"write {len(values)}")
        return await original(self, values, *args)

    monkeypatch.setattr(streaming.ocp.type_handlers.NumpyHandler, "serialize", written)
    monkeypatch.setattr(streaming.batches, "__defaults__", (100,))

    def leaf(name: str, count: int) -> UnreadLeaf:
        def read() -> np.ndarray:
            events.append(f"read {name}")
            return np.full(count, count, np.float32)

        return UnreadLeaf((count,), np.dtype(np.float32), read)

    leaves = {"a/x": leaf("a/x", 10), "a/y": leaf("a/y", 15), "b": leaf("b", 40), "c": leaf("c", 1)}
    write_unread(tmp_path / "params", leaves)
    assert events == [
        *("read a/x", "read a/y", "write 2"),
        *("read b", "write 1"),
        *("read c", "write 1"),
    ]
    restored = ocp.StandardCheckpointer().restore(tmp_path / "params")
    np.testing.assert_array_equal(restored["a"]["y"], np.full(15, 15, np.float32))
    assert set(restored) == {"a", "b", "c"}
