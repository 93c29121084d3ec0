"""The scores at the size of a paper: seconds and peak memory, each in a process of its own.

    python benchmarks/evaluation.py [--count 50000] [--features 2048]

Random features stand for images: precision and recall of `count` samples against `count` reference
images (the ADM suite uses 10,000 of those), KID of the same, and a Fréchet distance. The peak is
the largest resident set that the operating system saw, features included; the limit is 4 GB.
Results: `benchmarks/results/evaluation_<platform>.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import write

from lit_jax.evaluation import scores


def features(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Non-negative, as those of the pool; float32, as the job stores them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, dimensions), dtype=np.float32)
    np.abs(values, out=values)
    return values


def pairwise(count: int, dimensions: int) -> None:
    scores.precision_recall(features(count, dimensions, 0), features(count, dimensions, 1))


def kernel(count: int, dimensions: int) -> None:
    scores.kernel_distance(features(count, dimensions, 0), features(count, dimensions, 1))


def frechet(count: int, dimensions: int) -> None:
    first, second = scores.Moments(dimensions), scores.Moments(dimensions)
    for start in range(0, count, 2048):
        rows = min(2048, count - start)
        first.update(features(rows, dimensions, start))
        second.update(1.1 * features(rows, dimensions, start + 1))
    scores.moments_distance(first, second)


def inception_score(count: int, dimensions: int) -> None:
    scores.inception_score(features(count, 1008, 0))


CASES: dict[str, Callable[[int, int], None]] = {
    "precision and recall": pairwise,
    "KID": kernel,
    "FID": frechet,
    "Inception Score": inception_score,
}


def measured(case: str, count: int, dimensions: int) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, __file__, "--case", case]
    command += ["--count", str(count), "--features", str(dimensions)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"case": case, "images": f"{count:,}", "features": f"{dimensions:,}", **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--case", choices=CASES)
    given = parser.parse_args()
    if given.case is not None:
        began = time.perf_counter()
        CASES[given.case](given.count, given.features)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_gb": peak}))
        return
    rows = [measured(case, given.count, given.features) for case in CASES]
    write("evaluation", rows, {"unit": "seconds; gigabytes (2^30) of resident memory at the peak"})


if __name__ == "__main__":
    main()
