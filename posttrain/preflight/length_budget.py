"""Counting tokens of rows where a limit may be passed, for no longer than a check should take."""

from __future__ import annotations

import heapq
import time
from typing import Any

from posttrain.config.run_config import RunConfig
from posttrain.preflight.data import Rows, prompt_text
from posttrain.preflight.template import PromptEncoder

# Seconds spent on counting tokens; rows beyond are measured by the run itself.
LENGTH_SECONDS = 20.0
# Of more rows than this a sample is counted: the longest ones by their characters, and others spread evenly.
MANY_ROWS = 20_000
_LONGEST, _SPREAD = 500, 2500


def _sample(rows: Rows) -> frozenset[int]:
    """Rows to count: the longest ones, and others spread evenly."""
    sizes = [
        len(prompt_text(prompt)) + len(str(text)) for prompt, text in zip(rows.prompts, rows.solutions, strict=True)
    ]
    longest = heapq.nlargest(_LONGEST, range(len(sizes)), key=sizes.__getitem__)
    return frozenset([*longest, *range(0, len(sizes), len(sizes) // _SPREAD)])


class LengthBudget:
    """Counts tokens where they may pass a limit, for a limited time; of very many rows those of a sample."""

    def __init__(self, rows: Rows | None = None, seconds: float = LENGTH_SECONDS):
        self.end, self.skipped = time.monotonic() + seconds, 0
        self.rows, self.sample = rows, None if rows is None or len(rows) <= MANY_ROWS else _sample(rows)

    def leaves_out(self, index: int) -> bool:
        """Whether a row is not in the sample."""
        return self.sample is not None and index not in self.sample

    def spent(self, index: int) -> bool:
        """Whether a row is not to be counted."""
        if self.leaves_out(index):
            return True
        self.skipped += time.monotonic() > self.end
        return self.skipped > 0

    def facts(self) -> list[str]:
        """What was not counted."""
        if self.rows is None:
            return []
        told = []
        if self.sample is not None:
            told.append(
                f"{len(self.sample)} of {len(self.rows)} {self.rows.split} rows were tokenised, the longest ones and "
                "others spread evenly; the run measures them all"
            )
        if self.skipped:
            told.append(f"{self.skipped} long {self.rows.split} texts were not measured; the run measures them")
        return told

    def prompt_counter(self, encoder: PromptEncoder, *, of_rows: bool = False) -> Any:
        """Tokens of a prompt, or None once the time is spent. With `of_rows` the demonstrations are counted, too."""
        known, both = encoder.kept("prompt lengths", dict), encoder.kept("row lengths", dict)
        of_rows = of_rows and encoder.column != "prompt"  # of a document another part is given

        def count(index: int) -> int | None:
            if index not in known:
                if self.spent(index):
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
        known, has_inputs = encoder.kept("row lengths", dict), encoder.has_inputs

        def count(index: int) -> tuple[int, int] | None:
            text = rows.solutions[index]
            # A token covers at least one byte, and the stop token comes on top.
            is_text = not has_inputs or encoder.message(index, text) is None
            if limit is None or (is_text and not supervised and len(text.encode()) + 1 <= limit):
                return None
            if index not in known:
                if self.spent(index):
                    return None
                given, learnt = encoder.row(index)
                known[index] = len(given), len(learnt)
            return known[index]

        return count
