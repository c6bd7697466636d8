"""Copy two digits and give their sum modulo ten: which of the two places does a model read the sum from?

The question and the model's own copy say the same in training. A question whose copy was altered tells them apart:
made for methods that should make a model use the question rather than the step before (arXiv 2403.02178).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "copied_sum"
SHOWN = ("question", "copy", "altered", "altered_copy")
MAX_OPERAND = 999


def generate(
    size: int,
    *,
    seed: int,
    shown: str | Sequence[str] = "question",
    max_operand: int = 9,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Questions such as "4 7:" with the answer "4 7 1"; meant for sources with `format: text`.

    Args:
        size: number of rows.
        seed: of the data set.
        shown: what the prompt shows, or a list, which then takes turns; each is a group. "question": the question
            alone. "copy": with the copy, so that only the sum is left, "4 7:4 7 ". "altered": one number of the copy
            is another whose sum differs, "4 7:4 9 ", and the right answer is the question's sum. "altered_copy": the
            same prompts, and the right answer is the sum of the altered copy.
        max_operand: both numbers are drawn from 0 to this, 1 to 999, written with leading zeros.
        split: "train", "eval" (pairs of numbers disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`.

    Raises:
        ConfigError: for an option out of its range.
    """
    levels = checked_list(shown, where=f"{TASK}.shown", allowed=SHOWN)
    if isinstance(max_operand, bool) or not isinstance(max_operand, int) or not 1 <= max_operand <= MAX_OPERAND:
        allowed = f"integer 1 to {MAX_OPERAND}"
        raise ConfigError("out of range", where=f"{TASK}.max_operand", got=max_operand, allowed=allowed)
    width = len(str(max_operand))

    def draw(generator: random.Random, level: str) -> Problem:
        pair = [generator.randint(0, max_operand), generator.randint(0, max_operand)]
        question = f"{written(pair, width)}:"
        total, identity = str(sum(pair) % 10), written(pair, width)
        if level == "question":
            answer = f"{written(pair, width)} {total}"
            return Problem(question, answer, "", level, identity=identity, demonstration=answer)
        copy = list(pair)
        while level != "copy" and sum(copy) % 10 == sum(pair) % 10:
            copy = list(pair)
            copy[generator.randrange(2)] = generator.randint(0, max_operand)
        answer = str(sum(copy) % 10) if level == "altered_copy" else total
        return Problem(
            f"{question}{written(copy, width)} ", answer, "", level, identity=identity, demonstration=answer
        )

    return draw_rows(TASK, size, seed=seed, split=split, levels=levels, draw=draw)


def written(pair: Sequence[int], width: int) -> str:
    """ "04 17" for (4, 17) and width 2."""
    return " ".join(f"{number:0{width}}" for number in pair)
