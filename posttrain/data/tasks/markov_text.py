"""Text of random letters in groups that are learnt at different speeds: each group is a Markov chain of its own.

A group's chain runs over its `support` letters; the chance of the next letter follows from the letter before. The
letters are the first ones, so that a larger group has those of a smaller one, or each group's own. The more letters,
the more there is to learn and the later the loss settles. The chains are random but fixed, so that rows of every seed
and split are of the same groups, and the best loss a model can reach on a group is known.
"""

from __future__ import annotations

import functools
import math
import random
import string
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "markov_text"
SUPPORTS = {"easy": 6, "medium": 12, "hard": 24, "hardest": 48}
# 94 characters, of which groups with letters of their own take 90.
LETTERS = string.ascii_letters + string.digits + string.punctuation
# Of the gamma distribution of a letter's chances; smaller = surer next letters.
_CONCENTRATION = 0.2


def generate(
    size: int,
    *,
    seed: int,
    groups: str | Sequence[str] = tuple(SUPPORTS),
    length: int = 48,
    letters: str = "shared",
    split: str = "train",
) -> list[dict[str, Any]]:
    """Documents of random letters, for `format: text` and `demonstration_column: prompt`.

    Args:
        size: number of rows.
        seed: of the data set.
        groups: "easy", "medium", "hard", "hardest" (6, 12, 24, 48 letters) or a list of them, which take turns.
        length: characters of a document, 8 to 400.
        letters: "shared", every group has the first letters, or "own", none has a letter of another. The chains are
            the same.
        split: "train", "eval" (disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`, without answer and solution; the group is the chain.

    Raises:
        ConfigError: for an option out of its range.
    """
    chosen = checked_list(groups, where=f"{TASK}.groups", allowed=SUPPORTS)
    if isinstance(length, bool) or not isinstance(length, int) or not 8 <= length <= 400:
        raise ConfigError("out of range", where=f"{TASK}.length", got=length, allowed="integer 8 to 400")

    if letters not in ("shared", "own"):
        raise ConfigError("unknown letters", where=f"{TASK}.letters", got=letters, allowed="shared, own")

    def draw(generator: random.Random, group: str) -> Problem:
        text = _document(generator, _letters(group, letters), chances(group), length)
        return Problem(text, "", "", group, identity=text)

    rows = draw_rows(TASK, size, seed=seed, split=split, levels=chosen, draw=draw)
    for row in rows:
        row["solution"] = ""
    return rows


@functools.cache
def chances(group: str) -> list[list[float]]:
    """(support, support) chance of the next letter given the letter before; every row sums to 1."""
    generator = random.Random(f"{TASK}/{group}")
    support = SUPPORTS[group]
    table = []
    for _ in range(support):
        weights = [generator.gammavariate(_CONCENTRATION, 1.0) for _ in range(support)]
        table.append([weight / sum(weights) for weight in weights])
    return table


def entropy_rate(group: str, *, steps: int = 200) -> float:
    """Least mean loss of a token after the first, in nats, in the long run."""
    table = chances(group)
    share = [1 / len(table)] * len(table)
    for _ in range(steps):
        share = [sum(share[i] * table[i][j] for i in range(len(table))) for j in range(len(table))]
    return -sum(s * sum(p * math.log(p) for p in row if p > 0) for s, row in zip(share, table, strict=True))


def _letters(group: str, letters: str) -> str:
    """Alphabet of a group's chain."""
    first = 0
    if letters == "own":
        first = sum(size for name, size in SUPPORTS.items() if size < SUPPORTS[group])
    return LETTERS[first : first + SUPPORTS[group]]


def _document(generator: random.Random, letters: str, table: list[list[float]], length: int) -> str:
    place = generator.randrange(len(table))
    text = [letters[place]]
    while len(text) < length:
        place = generator.choices(range(len(table)), weights=table[place])[0]
        text.append(letters[place])
    return "".join(text)
