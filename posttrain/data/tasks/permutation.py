"""Copy, reverse or rearrange a string of letters; the demonstration names position and letter one by one."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows

OPERATIONS = ("copy", "reverse", "permute")


def generate(
    size: int,
    *,
    seed: int,
    length: int | Sequence[int] = 4,
    operations: str | Sequence[str] = "permute",
    split: str = "train",
) -> list[dict[str, Any]]:
    """Questions such as "permute hqzt 3142" with the working "3z 1h 4t 2q" and "Answer: zhtq".

    Args:
        size: number of rows.
        seed: of the data set.
        length: letters of the string, 1 to 9; a list gives levels in turn, and each level is a group.
        operations: "copy", "reverse", "permute" (to the order of the written positions), or a list of them.
        split: "train", "eval" (disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`; the group is "permute 4".

    Raises:
        ConfigError: for an option out of its range.
    """
    lengths = checked_list(length, where="permutation.length", allowed=range(1, 10))
    verbs = checked_list(operations, where="permutation.operations", allowed=OPERATIONS)

    def draw(generator: random.Random, level: tuple[str, int]) -> Problem:
        verb, count = level
        letters = "".join(generator.choice(string.ascii_lowercase) for _ in range(count))
        order = list(range(count))
        if verb == "reverse":
            order.reverse()
        elif verb == "permute":
            generator.shuffle(order)
        written = " " + "".join(str(position + 1) for position in order) if verb == "permute" else ""
        return Problem(
            question=f"{verb} {letters}{written}",
            answer="".join(letters[position] for position in order),
            working=" ".join(f"{position + 1}{letters[position]}" for position in order),
            group=f"{verb} {count}",
        )

    levels = [(verb, count) for count in lengths for verb in verbs]
    return draw_rows("permutation", size, seed=seed, split=split, levels=levels, draw=draw)
