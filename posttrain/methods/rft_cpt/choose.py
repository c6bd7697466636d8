"""Rollout-based instance filtering: before a stage, keep the rows that its starting model solves now and then.

k(x) = right completions of N. A row with k = 0 gives every rollout of its group the same reward, so no advantage, and
long rollouts for nothing. Here is the choice of rows from k, and the record that keeps k with what it belongs to.

Source: arXiv 2507.05386, RIF-RFT, the filter without the answer in the prompt. Deviation: which completion is right is
the verdict of the run's own verifier, so the paper's regular expression (box right after the thinking tag) is a
verifier of that kind; rows without any verdict are left out and counted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import DataError, ResumeError

CHOICES = ("solvable", "unsolvable", "random")


@dataclass(frozen=True)
class Filtered:
    """Rows that were kept, in order, and the numbers behind the choice.

    `counts` holds k(x) of every row, None where the verifier gave no verdict on any completion.
    """

    indices: list[int]
    counts: list[int | None]
    num_rollouts: int
    choose: str
    num_tokens: int = 0  # generated for it; 0 where the record of an earlier call was used

    def histogram(self) -> list[int]:
        """Rows with k = 0 ... N."""
        found = [0] * (self.num_rollouts + 1)
        for count in self.counts:
            if count is not None:
                found[count] += 1
        return found

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "choose": self.choose,
            "rows": len(self.counts),
            "kept": len(self.indices),
            "without_verdict": self.counts.count(None),
            "num_rollouts": self.num_rollouts,
            "histogram": self.histogram(),
            "generated_tokens": self.num_tokens,
        }

    def sentence(self) -> str:
        """For the user."""
        told = f"kept {len(self.indices)} of {len(self.counts)} training rows ({self.choose}; rows with k = 0 to "
        told += f"{self.num_rollouts} right completions: {', '.join(map(str, self.histogram()))}"
        missing = self.counts.count(None)
        return told + (f"; {missing} without a verdict are left out)" if missing else ")")


def select_rows(
    counts: Sequence[int | None],
    *,
    num_rollouts: int,
    min_correct: int = 1,
    max_correct: int | None = None,
    max_examples: int | None = None,
    choose: str = "solvable",
    seed: int = 42,
) -> list[int]:
    """Rows to keep, in order.

    Args:
        counts: k(x) of every row; None = not verified, never kept.
        num_rollouts: N.
        min_correct, max_correct: a row is solvable if min <= k <= max; None = N.
        max_examples: most rows; a random choice of them with the seed. None = all.
        choose: "solvable" rows; or, as controls of the same number as far as there are so many, rows that are not
            ("unsolvable"), or rows whatever their k ("random").
        seed: of the random choices.

    Raises:
        DataError: no row would be kept; the message holds the histogram of k.
    """
    most = num_rollouts if max_correct is None else max_correct
    verified = [index for index, count in enumerate(counts) if count is not None]
    solvable = [index for index in verified if min_correct <= int(counts[index] or 0) <= most]
    pool = {
        "solvable": solvable,
        "random": verified,
        "unsolvable": sorted(set(verified) - set(solvable)),
    }[choose]
    size = min(len(solvable), len(pool), len(solvable) if max_examples is None else max_examples)
    if not size:
        histogram = Filtered([], list(counts), num_rollouts, choose).histogram()
        numbers = ", ".join(f"{k}: {count}" for k, count in enumerate(histogram))
        raise DataError(
            f"the filter keeps none of {len(counts)} rows",
            where="rif",
            got=f"rows by number of right completions: {numbers}",
            allowed=f"{min_correct} to {most} right of {num_rollouts}",
            fix="Lower min_correct, sample more rollouts, or begin with easier rows",
        )
    return pool if size == len(pool) else sorted(random.Random(f"rif/{seed}").sample(pool, size))


def checked_cache(record: Mapping[str, Any], identity: Mapping[str, Any], *, where: str) -> list[int | None]:
    """k(x) of an earlier call that asked the same of the same model and rows.

    Raises:
        ResumeError: it belongs to another checkpoint, other rows or other settings; what differs is named.
    """
    known = record.get("identity", {})
    words = {"model": "another checkpoint", "data": "other rows"}
    for key, value in identity.items():
        if known.get(key) != value:
            raise ResumeError(
                f"the filter's record was made with {words.get(key, f'another {key}')}",
                where=where,
                fix="Delete the file, choose another folder, or set trainer.resume: never",
            )
    return list(record["counts"])
