"""Console progress of a training run: one bar on a terminal, plain lines elsewhere, on the main process only.

Shows the few numbers that tell whether a run is healthy. The loss is shown for supervised training alone: of a policy
gradient it is near zero whether the run learns or not, so the share of rows that carry gradient takes its place.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from posttrain.console import clock
from posttrain.registry import curves

Logs = Mapping[str, Any]

# (metric, what the console calls it); a name that is absent from the logs is not shown.
SHOWN = (
    *((curve.metric, curve.label) for curve in curves() if curve.shown),
    ("groups/all_wrong", "all wrong"),
    ("groups/mixed", "mixed"),
    ("groups/all_correct", "all correct"),
    ("gate/sft_fraction", "demonstrations"),
    ("update/gradient_rows", "gradient rows"),
    ("rollout/truncated_fraction", "truncated"),
    ("completions/mean_length", "length"),
)
GRADIENT_ROWS = "update/gradient_rows"


class RichProgress(TrainerCallback):
    """Step, time left, tokens per second and the numbers of `SHOWN`; says when a batch has no gradient, and why.

    Use `replace_printing(trainer)` so that transformers' bar and its dictionary of all logs do not appear beside it.

    Args:
        name: put before every line, for runs of several stages.
        verifier: reward whose mean is shown if the trainer logs neither `rollout/accuracy` nor `reward`.
        stream: default standard output; a live bar is drawn only if it is a terminal.
    """

    def __init__(self, *, name: str | None = None, verifier: str | None = None, stream: TextIO | None = None):
        self.name = name
        self.verifier = verifier
        self.stream = stream if stream is not None else sys.stdout
        self._bar: Any = None  # rich's Progress; None when there is no live bar
        self._task: Any = None
        self._live: Any = None
        self._numbers_line: Any = None
        self._began = self._logged_at = time.monotonic()
        self._first_step = self._logged_step = 0
        self._tokens: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called once for each `train()`; starts the bar."""
        self._began = self._logged_at = time.monotonic()
        self._first_step = self._logged_step = state.global_step
        # A resumed run goes on counting its tokens: the first difference is known only after the first log.
        self._tokens = 0.0 if state.global_step == 0 else None
        if not state.is_world_process_zero:
            return
        if self.stream.isatty():
            self._start_bar(state)
        elif state.global_step > 0:
            self.note(f"goes on from step {state.global_step} of {state.max_steps}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after each optimizer step; moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, left=self._time_left(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called for each logging event on every rank; `logs` is read and not changed."""
        if not state.is_world_process_zero or not logs or not is_step_log(logs):
            return
        parts = self._numbers(logs)
        if self._bar is not None:
            self._numbers_line.plain = "  ".join(parts)
        else:
            share = f"step {state.global_step}/{state.max_steps}"
            self.note(" | ".join([share, f"left {self._time_left(state)}", *parts]))
        if logs.get(GRADIENT_ROWS) == 0:
            self.note(f"{_steps(self._logged_step + 1, state.global_step)}: {why_no_gradient(logs)}")
        self._logged_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when `train()` returns; ends the bar and says how long it took."""
        self.close()
        if state.is_world_process_zero:
            steps = state.global_step - self._first_step
            self.note(f"trained {steps} steps in {clock(time.monotonic() - self._began)}")

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one; call it on the main process only."""
        line = f"[{self.name}] {text}" if self.name else text
        if self._bar is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Take the bar off the terminal; also done when training or the process ends, however it ends."""
        if self._bar is not None:
            self._live.stop()
            self._bar = None
            atexit.unregister(self.close)

    def _start_bar(self, state: TrainerState) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left {task.fields[left]}", markup=False),
        )
        name = self.name or "training"
        self._task = self._bar.add_task(name, total=state.max_steps, completed=state.global_step, left="?")
        # A line of its own: beside the bar, a narrow terminal would cut the numbers off.
        self._numbers_line = Text("")
        self._live = Live(Group(self._bar, self._numbers_line), console=Console(file=self.stream))
        self._live.start()
        # A live bar hides the cursor: an interrupted run must give it back.
        atexit.register(self.close)

    def _numbers(self, logs: Logs) -> list[str]:
        parts = []
        rate = self._tokens_per_second(logs)
        if rate is not None:
            parts.append(f"{_short(rate)} tokens/s")
        outcome = ("rollout/accuracy", "accuracy"), ("reward", "reward"), (f"rewards/{self.verifier}/mean", "reward")
        found = [f"{label} {_value(logs[name])}" for name, label in outcome if logs.get(name) is not None]
        if found:
            parts.append(found[0])
        elif logs.get("loss") is not None:
            parts.append(f"loss {_value(logs['loss'])}")
        return parts + [f"{label} {_value(logs[name])}" for name, label in SHOWN if logs.get(name) is not None]

    def _tokens_per_second(self, logs: Logs) -> float | None:
        now, tokens = time.monotonic(), logs.get("num_tokens")
        seconds, self._logged_at = now - self._logged_at, now
        before, self._tokens = self._tokens, tokens
        if tokens is None or before is None or seconds <= 0:
            return None
        return (tokens - before) / seconds

    def _time_left(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        if done < 1:
            return "?"
        return clock((time.monotonic() - self._began) / done * (state.max_steps - state.global_step))


def replace_printing(trainer: Any, progress: RichProgress) -> None:
    """Remove transformers' progress bar and log printer from a trainer and add ours."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)


def is_step_log(logs: Logs) -> bool:
    """Whether the logs describe training steps, and not an evaluation or the summary at the end."""
    return "train_runtime" not in logs and not any(name.startswith("eval_") for name in logs)


def why_no_gradient(logs: Logs) -> str:
    """The reason for a gradient that is exactly zero, from the fractions of the prompt groups."""
    text = "the gradient of this batch is exactly zero, nothing is learned from it"
    wrong, correct, mixed = (logs.get(f"groups/{name}") for name in ("all_wrong", "all_correct", "mixed"))
    if wrong is None or correct is None:
        return f"{text}: every row has weight zero."
    unverified = logs.get("groups/unverified") or 0.0
    fractions = f"all wrong {_value(wrong)}, all correct {_value(correct)}"
    fractions += f", not verified {_value(unverified)}" if unverified else ""
    if mixed:
        return (
            f"{text}: some groups are mixed ({_value(mixed)}), but their rows carry no weight because they are masked "
            f"or their rewards tie ({fractions})."
        )
    advice = (
        "Easier prompts, demonstrations or more completions per prompt would help"
        if wrong >= correct
        else "Harder prompts would help"
    )
    return f"{text}: in every group all completions have the same outcome ({fractions}). {advice}."


def _steps(first: int, last: int) -> str:
    return f"step {last}" if last <= first else f"steps {first} to {last}"


def _value(value: Any) -> str:
    number = float(value)
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.3g}"


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"
