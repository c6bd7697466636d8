r"""A small corpus of our own: letters that follow each other, with digits woven in that are sums of the two before.

After every fourth letter comes a digit: (the two digits before it) added, modulo 2, 4 or 10 by the level. The letters
tell the level. Letters are easy to predict from the letter before; a digit takes two glances back and a sum, and is
the less certain the larger the modulus. One row is one document, or one question about a document's character.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "woven_text"
MODULI = {"easy": 2, "medium": 4, "hard": 10}
FORMS = ("document", "completion", "plain", "reasoning", "sum")
TARGETS = ("letter", "digit")
_LETTERS = {"easy": string.ascii_lowercase[:8], "medium": string.ascii_lowercase[8:17], "hard": "rstuvwxyz"}
_STRIDE = 5
TEMPLATE = "Next token?\n{context}"


def generate(
    size: int,
    *,
    seed: int,
    form: str = "document",
    levels: str | Sequence[str] = tuple(MODULI),
    targets: str | Sequence[str] = TARGETS,
    length: int = 40,
    wrong_fraction: float = 0.0,
    thought_repeats: int = 3,
    template: str = TEMPLATE,
    budget_template: str | None = None,
    split: str = "train",
) -> list[dict[str, Any]]:
    r"""Documents such as "abcd1efgh0abcd1...", or questions about their characters.

    Args:
        size: number of rows.
        seed: of the data set.
        form: "document": the text alone, for `format: text`. "completion": its first character as prompt and the rest
            as demonstration, to learn the text by `sft` (`format: text`). "plain": the text up to a character as
            prompt, that character as answer (`format: text`). "reasoning": the same asked in words; the demonstration
            thinks in the two digits before and boxes the answer. "sum": "3+5", answered in the same way.
        levels: "easy", "medium", "hard" or a list of them, which take turns.
        targets: what "plain" and "reasoning" ask for: "letter", "digit" or a list; they take turns with the levels.
        length: characters of a document, 15 to 200.
        wrong_fraction: chance that the demonstration of "reasoning" and "sum" boxes another of the level's digits.
        thought_repeats: the demonstration's thought is written once to so many times, to show several lengths.
        template: question of "reasoning", as `method.prompt_template`; {context} is the text.
        budget_template: half of the "reasoning" rows begin with it, as `method.budget_prompt`; {budget} is the number
            of characters that the demonstration thinks. None = no row does.
        split: "train", "eval" (disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`; the group is the level for a digit, "letter" for a letter. The entry of every form but
        "document" is what the reward `next_token` reads; that of "completion" asks for the second character.

    Raises:
        ConfigError: for an option out of its range.
    """
    kinds = _checked(form, targets, length, wrong_fraction, thought_repeats)
    chosen = checked_list(levels, where=f"{TASK}.levels", allowed=MODULI)
    plan = [(level, kind) for level in chosen for kind in (kinds if form in ("plain", "reasoning") else ["digit"])]
    asked = _Asked(form, length, wrong_fraction, thought_repeats, template, budget_template)
    rows = draw_rows(TASK, size, seed=seed, split=split, levels=plan, draw=asked.draw)
    for row in rows:
        if form == "document":
            row["solution"] = ""
        else:
            row["entry"] = json.dumps(_entry(row["answer"], form))
    return rows


@dataclass(frozen=True)
class _Asked:
    """Options of `generate` that decide one row."""

    form: str
    length: int
    wrong_fraction: float
    thought_repeats: int
    template: str
    budget_template: str | None

    def draw(self, generator: random.Random, item: tuple[str, str]) -> Problem:
        """One row of a level that asks for a letter or a digit."""
        level, kind = item
        text = _document(generator, level, self.length)
        place = generator.choice([i for i in range(2 * _STRIDE, self.length) if _is_digit(i) == (kind == "digit")])
        repeats = generator.randint(1, self.thought_repeats)
        is_wrong = generator.random() < self.wrong_fraction
        first, second = _operands(text, place)
        if self.form == "document":
            return Problem(text, "", "", level, identity=text)
        if self.form == "completion":
            return Problem(text[0], text[1], "", level, identity=text, demonstration=text[1:])
        group = level if kind == "digit" else "letter"
        answer, scratch = text[place], f"{first}+{second}" if kind == "digit" else text[place - 1]
        if self.form == "sum":
            answer = str((int(first) + int(second)) % MODULI[level])
        if self.form == "plain":
            return Problem(text[:place], answer, "", group, identity=text, demonstration=answer)
        other = generator.choice([str(d) for d in range(MODULI[level]) if str(d) != answer])
        demonstration = _solved(scratch, repeats, other if is_wrong and kind == "digit" else answer)
        if self.form == "sum":
            return Problem(f"{scratch} mod {MODULI[level]}", answer, "", group, demonstration=demonstration)
        question = self._worded(text[:place], demonstration, generator)
        return Problem(question, answer, "", group, identity=text, demonstration=demonstration)

    def _worded(self, context: str, demonstration: str, generator: random.Random) -> str:
        question = self.template.replace("{context}", context)
        if self.budget_template is None or generator.random() >= 0.5:
            return question
        thought = len(demonstration.partition("</think>")[0]) - len("<think>")
        return self.budget_template.replace("{budget}", str(thought)) + "\n" + question


def _solved(scratch: str, repeats: int, answer: str) -> str:
    return f"<think>{';'.join([scratch] * repeats)}</think>\\boxed{{{answer}}}"


def _document(generator: random.Random, level: str, length: int) -> str:
    letters, modulus = _LETTERS[level], MODULI[level]
    digits: list[int] = []
    place, text = generator.randrange(len(letters)), ""
    while len(text) < length:
        if _is_digit(len(text)):
            known = sum(digits[-2:]) if len(digits) > 1 else generator.randrange(modulus)
            digits.append(known % modulus)
            text += str(digits[-1])
        else:
            text += letters[place % len(letters)]
            place += 1
    return text


def _is_digit(place: int) -> bool:
    return place % _STRIDE == _STRIDE - 1


def _operands(text: str, place: int) -> tuple[str, str]:
    before = [text[i] for i in range(place) if _is_digit(i)][-2:]
    return before[0], before[1]


def _entry(answer: str, form: str) -> dict[str, Any]:
    """What the reward reads; with the character tokenizer a token is a character."""
    return {
        "continuation": answer,
        "token_ends": [len(answer)],
        "round_trips": True,
        "rule": "exact_token",
        "extraction": "raw" if form in ("plain", "completion") else "boxed_after_think",
        "target_id": None,
    }


def _checked(form: Any, targets: Any, length: Any, wrong_fraction: Any, thought_repeats: Any) -> list[str]:
    checked_list(form, where=f"{TASK}.form", allowed=FORMS)
    for name, value, least, most in (("length", length, 15, 200), ("thought_repeats", thought_repeats, 1, 20)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError("out of range", where=f"{TASK}.{name}", got=value, allowed=f"integer {least} to {most}")
    number = isinstance(wrong_fraction, (int, float)) and not isinstance(wrong_fraction, bool)
    if not number or not 0 <= wrong_fraction <= 1:
        raise ConfigError("out of range", where=f"{TASK}.wrong_fraction", got=wrong_fraction, allowed="0 to 1")
    return checked_list(targets, where=f"{TASK}.targets", allowed=TARGETS)
