"""Check of what a chat template reads beside the row: the clock, and chance."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.template_clock import date_variable, hold_clock, noted_clock, reads_clock, uses_chance
from posttrain.preflight.data import Rows, rows_text

if TYPE_CHECKING:
    from posttrain.preflight.template import PromptEncoder


def clock_findings(
    cfg: RunConfig, encoder: PromptEncoder, rows: Rows, *, trained: bool
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding): rows whose template writes the time of the run, or draws at random.

    Args:
        cfg: the run. encoder: tokenizer with the template's variables. rows: one split.
        trained: whether the demonstrations are trained.
    """
    tokenizer, where = encoder.tokenizer, cfg.where("model", "template_date")
    hold_clock(cfg.model.template_date)
    if uses_chance(tokenizer):
        what = "the chat template draws at random, so no two runs would have the same prompts"
        yield True, ConfigError(what, where=cfg.where("model"), fix="Take `random` or `lipsum` out of the template")
        return
    if not reads_clock(tokenizer):
        if cfg.model.template_date is not None:
            yield False, ConfigError("the chat template does not read the date", where=where, fix="Remove the line")
        return
    if cfg.model.template_date is not None:
        return
    found = _dated(encoder, rows, trained=trained)
    if found:
        variable = date_variable(tokenizer)
        other = (
            "" if variable is None else f", or give the template's own variable in chat_template_kwargs: {variable}"
        )
        yield (
            True,
            ConfigError(
                f"the chat template writes the date or time of the run into {len(found)} of {len(rows)} rows of "
                f"data.{rows.split} ({rows_text(found)}), so another run, or this one continued later, would have "
                "other prompts",
                where=where,
                fix=f"Set the date that the prompts are to have, model.template_date: {date.today()}{other}",
            ),
        )


def _dated(encoder: PromptEncoder, rows: Rows, *, trained: bool) -> list[int]:
    """Rows whose rendering reads the clock."""
    found = []
    for index in range(len(rows)):
        text = rows.solutions[index] if trained else None
        with noted_clock() as noted:
            try:
                if isinstance(text, str) and text.strip():
                    encoder.row(index)
                else:
                    encoder.prompt(index)
            except PosttrainError:
                pass  # told by the checks of the template
            if noted:
                found.append(index)
    return found
