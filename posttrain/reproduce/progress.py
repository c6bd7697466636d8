"""What a user sees while a study runs: a live table on a terminal, a line for every finished stage off it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from posttrain.reports.markdown import duration

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class SeedState:
    """How far one seed is."""

    seed: int
    stages: tuple[str, ...]
    done: set[str] = field(default_factory=set)
    step: int = 0  # of the stage that runs
    running: bool = False
    failed: bool = False

    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.done >= set(self.stages)

    def current(self) -> str | None:
        """The first stage that is not done."""
        return next((name for name in self.stages if name not in self.done), None)


class Display:
    """Shows `SeedState`s; used as a context.

    Args:
        console: of rich; whether it is a terminal decides the form.
        steps: optimizer steps of each stage, for the estimate of the time left.
    """

    def __init__(self, console: Console, steps: dict[str, int]):
        self.console, self.steps = console, steps
        self.began = time.monotonic()
        self.at_start: float | None = None
        self.known: dict[int, set[str]] = {}
        self.live: Any = None

    def __enter__(self) -> Display:
        self.began = time.monotonic()
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2)
            self.live.start()
        return self

    def __exit__(self, *reason: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, states: dict[int, SeedState]) -> None:
        """Show how far every seed is."""
        share = self._share(states)
        if self.at_start is None:
            self.at_start = share
            self.known = {seed: set(state.done) for seed, state in states.items()}
            self._resumed(states)
        if self.live is not None:
            self.live.update(self._table(states, share))
            return
        for seed, state in states.items():
            for name in [name for name in state.stages if name in state.done - self.known[seed]]:
                self.known[seed].add(name)
                self._line(
                    f"seed {seed}: {name} done ({len(state.done)} of {len(state.stages)} stages); {self._times(share)}"
                )

    def failure(self, seed: int, code: int, lines: list[str]) -> None:
        """Show the end of a failed child's log."""
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._line(f"seed {seed} failed ({how}); the end of its log:")
        for line in lines:
            self._line(f"  | {line}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _resumed(self, states: dict[int, SeedState]) -> None:
        done, total = (
            sum(len(x) for x in sets) for sets in zip(*((s.done, s.stages) for s in states.values()), strict=True)
        )
        if done:
            self._line(f"{done} of {total} stages were finished by an earlier call")

    def _share(self, states: dict[int, SeedState]) -> float:
        """Part of all optimizer steps that is done."""
        total = sum(self.steps[name] for state in states.values() for name in state.stages)
        done = sum(self.steps[name] for state in states.values() for name in state.done)
        done += sum(state.step for state in states.values() if state.running)
        return done / max(total, 1)

    def _times(self, share: float) -> str:
        elapsed = time.monotonic() - self.began
        gained = share - (self.at_start or 0.0)
        text = f"{100 * share:.0f} % of the steps, {duration(elapsed)}"
        # A rough figure: steps of different methods do not take the same time.
        return (
            f"{text}, about {duration(elapsed * (1 - share) / gained)} left" if gained > 0.02 and share < 1 else text
        )

    def _table(self, states: dict[int, SeedState], share: float) -> Any:
        table = Table(title=self._times(share), title_justify="left")
        for column in ("seed", "stages done", "", "now"):
            table.add_column(column)
        for state in states.values():
            now = "waiting"
            if state.failed:
                now = "failed"
            elif state.finished():
                now = "done"
            elif state.running:
                name = state.current() or ""
                now = f"{name}, step {state.step} of {self.steps[name]}"
            total, done = len(state.stages), len(state.done)
            bar = ProgressBar(total=total, completed=done, width=24)
            table.add_row(str(state.seed), f"{done} of {total}", bar, now)
        return table
