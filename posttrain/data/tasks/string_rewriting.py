"""Copy, reverse, sort or increment a string of letters; the demonstration is the answer alone.

Made for studies that train one operation after another: all operations share their strings, so what one of them
learns or loses can be told from what the strings look like. (`permutation` shows its work; this task does not.)
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "string_rewriting"
OPERATIONS = ("copy", "reverse", "sort", "increment")


def generate(
    size: int,
    *,
    seed: int,
    operations: str | Sequence[str] = OPERATIONS,
    length: int | Sequence[int] = 4,
    num_letters: int = 8,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Questions such as "increment hbag" with the answer "acbh" (in an alphabet of 8 letters, a follows h).

    Args:
        size: number of rows.
        seed: of the data set.
        operations: "copy", "reverse", "sort" (alphabetical), "increment" (each letter's successor, cyclically), or a
            list of them, which then take turns; each is a group.
        length: letters of a string, 1 to 12; a list gives levels in turn.
        num_letters: size of the alphabet, the first letters from a on; 2 to 26.
        split: "train", "eval" or "all". A string that belongs to "eval" does so for every operation and seed.

    Returns:
        Rows as of `draw_rows`; the group is the operation, with the length after it if there are several.

    Raises:
        ConfigError: for an option out of its range.
    """
    verbs = checked_list(operations, where=f"{TASK}.operations", allowed=OPERATIONS)
    lengths = checked_list(length, where=f"{TASK}.length", allowed=range(1, 13))
    if isinstance(num_letters, bool) or not isinstance(num_letters, int) or not 2 <= num_letters <= 26:
        raise ConfigError("out of range", where=f"{TASK}.num_letters", got=num_letters, allowed="integer 2 to 26")
    alphabet = string.ascii_lowercase[:num_letters]

    def draw(generator: random.Random, level: tuple[str, int]) -> Problem:
        verb, count = level
        letters = "".join(generator.choice(alphabet) for _ in range(count))
        answer = rewritten(verb, letters, alphabet=alphabet)
        group = f"{verb} {count}" if len(set(lengths)) > 1 else verb
        return Problem(f"{verb} {letters}", answer, "", group, identity=letters, demonstration=answer)

    levels = [(verb, count) for count in lengths for verb in verbs]
    return draw_rows(TASK, size, seed=seed, split=split, levels=levels, draw=draw)


def rewritten(operation: str, letters: str, *, alphabet: str) -> str:
    """A string after one of `OPERATIONS`; every letter must be in the alphabet, which is in alphabetical order."""
    if operation == "copy":
        return letters
    if operation == "reverse":
        return letters[::-1]
    if operation == "sort":
        return "".join(sorted(letters))
    return "".join(alphabet[(alphabet.index(letter) + 1) % len(alphabet)] for letter in letters)
