"""Console progress of a pass over data, such as an evaluation: a bar with the time left on a terminal, a line now and
then elsewhere.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from posttrain.console import clock

LINE_EVERY_SECONDS = 30.0


class EvaluationProgress:
    """Call it with (prompts done, prompts in all) after each batch; use it as a context manager.

    Args:
        stream: default standard output; a live bar is drawn only if it is a terminal.
        line_every_seconds: off a terminal, the least time between two lines.
        words: what is being done, what was done, and to what.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        line_every_seconds: float = LINE_EVERY_SECONDS,
        words: tuple[str, str, str] = ("evaluating", "evaluated", "prompts"),
    ):
        self.words = words
        self.stream = stream if stream is not None else sys.stdout
        self.every = line_every_seconds
        self._bar: Any = None
        self._task: Any = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> EvaluationProgress:
        """Start the clock, and the bar on a terminal."""
        self._began = self._told = time.monotonic()
        if self.stream.isatty():
            self._bar = Progress(
                TextColumn(self.words[0]),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("left {task.fields[left]}", markup=False),
                console=Console(file=self.stream),
                transient=True,
            )
            self._task = self._bar.add_task(self.words[0], total=None, left="?")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar off the terminal, however the evaluation ends."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` prompts are evaluated."""
        now = time.monotonic()
        left = clock((now - self._began) / done * (total - done)) if done else "?"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, left=left)
        elif now - self._told >= self.every and done < total:
            self._told = now
            self.stream.write(f"{self.words[1]} {done} of {total} {self.words[2]}, left {left}\n")
            self.stream.flush()
