"""What drawing rows group by group costs at scale: microseconds a drawn row, and memory beside the rows themselves.

The groups of the rows are of very different sizes (Zipf), the proportions change every 100 steps, and one block of 20
steps is planned beforehand, as in a measurement of Aioli. Counted as memory is the growth of the resident set, at its
peak, from before the groups of the rows are known to after the last row is drawn: the number of every row's group, the
rows sorted by group, the orders within groups. Each is 4 bytes a row; sorting needs more for a moment.

Exits with 1 where a row takes more than 50 microseconds or the memory more than 200 MB.

    python scripts/bench/group_sampling.py [--rows 10000000] [--groups 200] [--draws 200000]
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time

import numpy as np

from posttrain.seam.groups.sampler import FixedMixture, GroupMixtureSampler

MICROSECONDS, MEGABYTES = 50.0, 200.0
ROWS_PER_STEP = 512


def peak_megabytes() -> float:
    """Largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def groups_of(rows: int, groups: int) -> np.ndarray:
    """(rows,) int32 group numbers, group g with a share of about 1 / (g + 1); in blocks, so that little is held."""
    shares = 1.0 / np.arange(1, groups + 1)
    ends = np.cumsum(shares / shares.sum())
    numbers = np.empty(rows, dtype=np.int32)
    generator = np.random.default_rng(0)
    for start in range(0, rows, 1 << 18):
        block = numbers[start : start + (1 << 18)]
        block[:] = np.searchsorted(ends, generator.random(len(block)) * ends[-1], side="right")
    numbers[:groups] = np.arange(groups)  # each has a row
    return numbers


def main() -> int:
    """Measure, print, and say whether a bound was passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200_000)
    arguments = parser.parse_args()
    m, steps = arguments.groups, -(-arguments.draws // ROWS_PER_STEP)
    generator = np.random.default_rng(1)
    planned = FixedMixture(generator.dirichlet(np.ones(m)), first=True)

    groups_of(1 << 18, m)  # what numpy loads on first use is no cost of the sampler
    before = peak_megabytes()
    numbers = groups_of(arguments.rows, m)
    begun = time.perf_counter()
    sampler = GroupMixtureSampler(
        numbers,
        proportions=np.full(m, 1 / m),
        rows_per_step=ROWS_PER_STEP,
        num_steps=steps,
        seed=0,
        plan=lambda step: planned if 50 <= step < 70 else None,
    )
    built = time.perf_counter() - begun
    counts = np.zeros(m, dtype=np.int64)
    begun, rows = time.perf_counter(), iter(sampler)
    for step in range(steps):
        drawn = list(itertools.islice(rows, ROWS_PER_STEP))
        if step % 100 == 99:
            sampler.set_proportions(generator.dirichlet(np.ones(m)), after=step)
        counts += np.bincount(numbers[drawn], minlength=m)
    seconds = time.perf_counter() - begun
    used = peak_megabytes() - before

    micro = seconds / (steps * ROWS_PER_STEP) * 1e6
    print(f"{arguments.rows} rows in {m} groups of {np.bincount(numbers).min()} to {np.bincount(numbers).max()} rows")
    print(f"set up in {built:.2f} s; {steps * ROWS_PER_STEP} rows drawn, {np.count_nonzero(counts)} groups among them")
    print(f"{micro:.1f} microseconds a drawn row (at most {MICROSECONDS:g})")
    print(f"{used:.0f} MB of memory (at most {MEGABYTES:g})")
    return int(micro > MICROSECONDS or used > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
