"""Batches of one bucket each: which, how often, and from any position."""

from __future__ import annotations

import pickle

import grain
import numpy as np
import pytest

from lit_jax.data.mixture import BLOCK, Mixture, Reshuffled, Schedule

COUNTS = (7, 1, 40, 2)


def test_buckets_come_as_often_as_they_have_images() -> None:
    schedule = Schedule(COUNTS, seed=3)
    drawn = np.array([schedule.at(k)[0] for k in range(20_000)])
    found = np.bincount(drawn, minlength=4) / len(drawn)
    wanted = np.array(COUNTS) / sum(COUNTS)
    # Five standard deviations of a binomial.
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / len(drawn))).all()
    # Neighbours do not depend on each other: pairs as often as chance has it.
    pairs = np.mean((drawn[:-1] == 2) & (drawn[1:] == 2))
    assert abs(pairs - wanted[2] ** 2) < 0.02


def test_occurrences_are_counted_across_blocks_and_from_anywhere() -> None:
    """One that was asked in order, one that jumps, and one that goes back agree."""
    last = 2 * BLOCK + 50
    schedule = Schedule(COUNTS, seed=3)
    seen = [0] * len(COUNTS)
    found = []
    for position in range(last):
        bucket, occurrence = schedule.at(position)
        assert occurrence == seen[bucket]
        seen[bucket] += 1
        found.append((bucket, occurrence))
    other = Schedule(COUNTS, seed=3)
    for position in (last - 1, BLOCK, BLOCK - 1, 0, 2 * BLOCK):
        assert other.at(position) == found[position]


def test_seed_decides() -> None:
    first, again, other = ([Schedule(COUNTS, seed).at(k) for k in range(50)] for seed in (3, 3, 4))
    assert first == again != other


def test_blocks_differ() -> None:
    schedule = Schedule(COUNTS, 3)
    first, second = ([schedule.at(b * BLOCK + k)[0] for k in range(50)] for b in range(2))
    assert first != second


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own() -> None:
    records, rows = [bytes([k]) for k in range(20)], np.array([3, 5, 8, 13, 19])
    source = Reshuffled(records, rows, 1)
    epochs = [tuple(source[5 * epoch + k][0] for k in range(5)) for epoch in range(6)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {(3, 5, 8, 13, 19)}
    assert len(set(epochs)) > 3
    other = Reshuffled(records, rows, 2)
    assert [tuple(other[5 * epoch + k][0] for k in range(5)) for epoch in range(6)] != epochs


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_take_the_parts_of_the_same_batch(hosts: int) -> None:
    """Bucket b counts from 1000 b, eight numbers per global batch."""
    streams = [
        grain.MapDataset.range(1000 * b, 1000 * b + 1000).repeat().batch(8 // hosts)
        for b in range(len(COUNTS))
    ]
    mixture = Mixture(streams, COUNTS, 3, hosts)
    copy = pickle.loads(pickle.dumps(mixture))  # as for a worker process
    schedule = Schedule(COUNTS, 3)
    for position in (0, 1, 2, 77, 300):
        bucket, occurrence = schedule.at(position)
        parts = [mixture[position * hosts + host] for host in range(hosts)]
        wanted = 1000 * bucket + (8 * occurrence + np.arange(8)) % 1000
        np.testing.assert_array_equal(np.concatenate(parts), wanted)
        np.testing.assert_array_equal(copy[position * hosts], parts[0])
