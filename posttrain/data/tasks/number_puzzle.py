"""Short number puzzles with a whole-number answer: a missing number, a sequence to continue, an equation to solve."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

KINDS = ("missing", "sequence", "equation")


def generate(
    size: int,
    *,
    seed: int,
    kinds: str | Sequence[str] = KINDS,
    max_number: int = 20,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Puzzles: "?+7=12" (12-7=5), "4 7 10 ?" (7-4=3 10+3=13) and "3x+4=19 x=?" (19-4=15 15/3=5).

    Args:
        size: number of rows.
        seed: of the data set.
        kinds: "missing" (one step), "sequence" (two), "equation" (two, with division), or a list; each kind is a
            group.
        max_number: largest number drawn, 5 to 99; the numbers computed from them may be larger.
        split: "train", "eval" (disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`.

    Raises:
        ConfigError: for an option out of its range.
    """
    levels = checked_list(kinds, where="number_puzzle.kinds", allowed=KINDS)
    if isinstance(max_number, bool) or not isinstance(max_number, int) or not 5 <= max_number <= 99:
        raise ConfigError("out of range", where="number_puzzle.max_number", got=max_number, allowed="5 to 99")

    def draw(generator: random.Random, kind: str) -> Problem:
        return _DRAW[kind](generator, max_number)

    return draw_rows("number_puzzle", size, seed=seed, split=split, levels=levels, draw=draw)


def _missing(generator: random.Random, largest: int) -> Problem:
    unknown, known = generator.randint(0, largest), generator.randint(1, largest)
    total = unknown + known
    return Problem(f"?+{known}={total}", str(unknown), f"{total}-{known}={unknown}", "missing")


def _sequence(generator: random.Random, largest: int) -> Problem:
    start, step = generator.randint(0, largest), generator.randint(1, max(2, largest // 2))
    first, second, third, answer = (start + k * step for k in range(4))
    working = f"{second}-{first}={step} {third}+{step}={answer}"
    return Problem(f"{first} {second} {third} ?", str(answer), working, "sequence")


def _equation(generator: random.Random, largest: int) -> Problem:
    factor, unknown, known = generator.randint(2, 9), generator.randint(0, largest), generator.randint(1, largest)
    total = factor * unknown + known
    working = f"{total}-{known}={total - known} {total - known}/{factor}={unknown}"
    return Problem(f"{factor}x+{known}={total} x=?", str(unknown), working, "equation")


_DRAW = {"missing": _missing, "sequence": _sequence, "equation": _equation}
