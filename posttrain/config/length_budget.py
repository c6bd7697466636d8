"""Counting tokens of rows where a limit may be passed, for no longer than a check should take."""

from __future__ import annotations

import time
from typing import Any

from posttrain.config.checks_data import Rows
from posttrain.config.checks_template import PromptEncoder
from posttrain.config.run_config import RunConfig

# Seconds spent on counting tokens; rows beyond are measured by the run itself.
LENGTH_SECONDS = 20.0


class LengthBudget:
    """Counts tokens where they may pass a limit, for a limited time."""

    def __init__(self, seconds: float = LENGTH_SECONDS):
        self.end, self.skipped = time.monotonic() + seconds, 0

    def spent(self) -> bool:
        self.skipped += time.monotonic() > self.end
        return self.skipped > 0

    def prompt_counter(self, encoder: PromptEncoder) -> Any:
        """Tokens of a prompt, or None once the time is spent."""

        def count(index: int) -> int | None:
            return None if self.spent() else len(encoder.prompt(index))

        return count

    def row_counter(self, cfg: RunConfig, supervised: bool, encoder: PromptEncoder, rows: Rows) -> Any:
        """(prompt, demonstration) tokens of a row; None where the bytes of the text already fit the limit."""
        limit = cfg.trainer.max_length if supervised else cfg.rollout.max_completion_length  # type: ignore[union-attr]

        def count(index: int) -> tuple[int, int] | None:
            text = rows.solutions[index]
            # A token covers at least one byte, and the stop token comes on top.
            if limit is None or (not supervised and len(text.encode()) + 1 <= limit) or self.spent():
                return None
            given, learnt = encoder.row(index)
            return len(given), len(learnt)

        return count
