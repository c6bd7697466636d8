"""What the packaged tasks share: seeded rows, levels in turn, and train and eval halves that cannot overlap."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, DataError

SPLITS = ("train", "eval", "all")
_EVAL_BUCKETS = 8
_MAX_DRAWS = 2000


@dataclass(frozen=True)
class Problem:
    """One question with a correct answer and a demonstration, usually one that ends in "Answer: <answer>".

    `identity` is what the split goes by where two questions are one problem (47+38 and 38+47); empty: the question.
    `demonstration` replaces the usual one. `accepted` lists every correct answer where there are several.
    """

    question: str
    answer: str
    working: str
    group: str
    identity: str = ""
    demonstration: str = ""
    accepted: tuple[str, ...] = ()

    @property
    def solution(self) -> str:
        """The demonstration: as given, or working, then the answer on a line of its own."""
        if self.demonstration:
            return self.demonstration
        return f"{self.working}\nAnswer: {self.answer}" if self.working else f"Answer: {self.answer}"


def draw_rows(
    task: str,
    size: int,
    *,
    seed: int,
    split: str,
    levels: Sequence[Any],
    draw: Callable[[random.Random, Any], Problem],
) -> list[dict[str, str]]:
    """Draw the rows of a task, its levels in turn, keeping only problems that belong to the split.

    Args:
        task: name written into the rows.
        size: number of rows, >= 0.
        seed: of the whole data set.
        split: "train", "eval" or "all", see `in_split`.
        levels: difficulty levels; row i has level i mod len(levels), so naming a level twice doubles its share.
        draw: makes one problem of a level from a generator that belongs to row i alone.

    Returns:
        Rows with the keys prompt, answer, solution, group, task and entry, all strings. A problem may come twice.

    Raises:
        ConfigError: for an unknown split, no levels, or a negative size.
        DataError: if a level has no problem in the split.
    """
    if split not in SPLITS:
        raise ConfigError("unknown split", where=f"{task}.split", got=split, allowed=f"one of: {', '.join(SPLITS)}")
    if size < 0:
        raise ConfigError("must be at least 0", where=f"{task}.size", got=size)
    rows = []
    for index in range(size):
        generator = row_generator(task, seed, index)
        level = levels[index % len(levels)]
        for _ in range(_MAX_DRAWS):
            problem = draw(generator, level)
            if in_split(problem.identity or problem.question, split):
                break
        else:
            raise DataError(
                f"no problem of level {level!r} belongs to the {split} split",
                where=f"{task} row {index}",
                fix="Take a harder level, whose problems are more",
            )
        entry = {"level": level} | ({"accepted": problem.accepted} if problem.accepted else {})
        rows.append(
            {
                "prompt": problem.question,
                "answer": problem.answer,
                "solution": problem.solution,
                "group": problem.group,
                "task": task,
                "entry": json.dumps(entry),
            }
        )
    return rows


def row_generator(task: str, seed: int, index: int) -> random.Random:
    """Generator of one row: the same for the same task, seed and index, whatever was drawn before."""
    return random.Random(f"{task}/{seed}/{index}")


def in_split(identity: str, split: str) -> bool:
    """Whether a problem belongs to a split: by the hash of its text one in eight is "eval", the rest are "train".

    Because the text alone decides, no seed and no option can put one problem into both.
    """
    if split == "all":
        return True
    bucket = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]) % _EVAL_BUCKETS
    return (bucket == 0) == (split == "eval")


def checked_list(value: Any, *, where: str, allowed: Iterable[Any]) -> list[Any]:
    """An option that is one value or a non-empty list of values, as a list; every value must be one of `allowed`.

    Raises:
        ConfigError: naming the first value that is not allowed, or the empty list.
    """
    values = list(value) if isinstance(value, list | tuple) else [value]
    choices = list(allowed)
    shown = ", ".join(str(choice) for choice in choices)
    if not values:
        raise ConfigError("must name at least one value", where=where, got=value, allowed=f"one or more of: {shown}")
    for item in values:
        if isinstance(item, bool) or item not in choices:
            raise ConfigError("unknown value", where=where, got=item, allowed=f"one or more of: {shown}")
    return values
