"""Counting tokens of rows where a limit may be passed, for no longer than a check should take."""

from __future__ import annotations

import time
from typing import Any

from posttrain.config.checks_data import Rows, kept
from posttrain.config.checks_template import PromptEncoder
from posttrain.config.run_config import RunConfig

# Seconds spent on counting tokens; rows beyond are measured by the run itself.
LENGTH_SECONDS = 20.0


def _known(encoder: PromptEncoder, column: str) -> dict[int, Any]:
    """Lengths of rows that several stages of a recipe read alike; no column for prompts alone."""
    key = ("lengths", encoder.tokenizer, repr(encoder.kwargs), column)
    found: dict[int, Any] = kept(encoder.rows.dataset, key, dict)
    return found


class LengthBudget:
    """Counts tokens where they may pass a limit, for a limited time."""

    def __init__(self, seconds: float = LENGTH_SECONDS):
        self.end, self.skipped = time.monotonic() + seconds, 0

    def spent(self) -> bool:
        self.skipped += time.monotonic() > self.end
        return self.skipped > 0

    def prompt_counter(self, encoder: PromptEncoder, *, of_rows: bool = False) -> Any:
        """Tokens of a prompt, or None once the time is spent. With `of_rows` the demonstrations are counted, too."""
        known, both = _known(encoder, ""), _known(encoder, encoder.column)
        of_rows = of_rows and encoder.column != "prompt"  # of a document another part is given

        def count(index: int) -> int | None:
            if index not in known:
                if self.spent():
                    return None
                text = encoder.rows.solutions[index] if of_rows else None
                if isinstance(text, str) and text.strip():
                    given, learnt = encoder.row(index)
                    both[index] = len(given), len(learnt)
                else:
                    given = encoder.prompt(index)
                known[index] = len(given)
            return known[index]

        return count

    def row_counter(self, cfg: RunConfig, supervised: bool, encoder: PromptEncoder, rows: Rows) -> Any:
        """(prompt, demonstration) tokens of a row; None where the bytes of the text already fit the limit."""
        limit = cfg.trainer.max_length if supervised else cfg.rollout.max_completion_length  # type: ignore[union-attr]
        known = _known(encoder, encoder.column)

        def count(index: int) -> tuple[int, int] | None:
            text = rows.solutions[index]
            # A token covers at least one byte, and the stop token comes on top.
            is_text = encoder.message(index, text) is None
            if limit is None or (is_text and not supervised and len(text.encode()) + 1 <= limit):
                return None
            if index not in known:
                if self.spent():
                    return None
                given, learnt = encoder.row(index)
                known[index] = len(given), len(learnt)
            return known[index]

        return count
