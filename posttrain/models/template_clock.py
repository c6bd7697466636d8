"""The clock of chat templates, held still.

transformers 5.17 gives every template `strftime_now`, which reads the machine's clock: two runs with one seed would
differ, and a run that is continued the next day would see other prompts. Here the clock shows one moment that the
recipe names (`model.template_date`), or refuses to be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

from posttrain.errors import ConfigError

_ASKED = re.compile(r"\bstrftime_now\b")
# What else jinja2 gives a template that differs from one rendering to the next.
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")
_SET = re.compile(r"\bset\s+(\w+)\s*=\s*strftime_now\b")


class _Clock:
    """Stands for `datetime` in the module that renders templates, of which that reads `now()` alone."""

    def __init__(self) -> None:
        self.moment: datetime | None = None
        self.noted: list[bool] | None = None

    def now(self) -> datetime:
        if self.noted is not None:
            self.noted.append(True)
            return self.moment or datetime(2000, 1, 1)
        if self.moment is None:
            raise ConfigError(
                "the chat template writes the date or time of the run, so no other run would have the same prompts",
                where="model.template_date",
                fix="Set it to the date that the prompts are to have; in Python call "
                'posttrain.models.template_clock.hold_clock("2026-01-31") first',
            )
        return self.moment


_CLOCK = _Clock()


def hold_clock(date: str | None) -> None:
    """From now on templates read this moment in this process.

    Args:
        date: "2026-01-31" or "2026-01-31T12:00:00"; None = a template that reads the clock is refused.

    Raises:
        ValueError: no date of this form.
    """
    _CLOCK.moment = None if date is None else datetime.fromisoformat(date)
    chat_template_utils.datetime = _CLOCK  # type: ignore[assignment]


def guard_clock() -> None:
    """Refuse templates that read the clock, unless it is held."""
    if chat_template_utils.datetime is not _CLOCK:
        hold_clock(None)


@contextmanager
def noted_clock() -> Iterator[list[bool]]:
    """While the block runs the clock may be read; the list has an item for every time that it was."""
    guard_clock()
    _CLOCK.noted = []
    try:
        yield _CLOCK.noted
    finally:
        _CLOCK.noted = None


def reads_clock(tokenizer: Any) -> bool:
    """Whether a tokenizer's template may read the clock."""
    return _ASKED.search(_templates(tokenizer)) is not None


def uses_chance(tokenizer: Any) -> bool:
    """Whether a tokenizer's template draws at random."""
    return _CHANCE.search(_templates(tokenizer)) is not None


def date_variable(tokenizer: Any) -> str | None:
    """Variable of a template that stands in for the clock where it is given, such as `date_string`."""
    text = _templates(tokenizer)
    for name in _SET.findall(text):
        if re.search(rf"\b{name}\s+is\s+(not\s+)?defined\b|\bnot\s+{name}\b", text):
            return str(name)
    return None


def _templates(tokenizer: Any) -> str:
    template = tokenizer.chat_template or ""
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)
