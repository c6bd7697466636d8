"""Warnings about a run that goes wrong while it runs, each said once, with the setting to change.

They are printed, kept in `health.json` with the step, and shown in the run's `REPORT.md`. What is looked for is in
`health_checks.py`; free disk space is looked at here. Nothing is stopped or changed.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.reports.records import write_json
from posttrain.training.callbacks.health_checks import Check, Finding, HealthLimits, Log, all_checks
from posttrain.training.callbacks.progress import is_step_log

GIB = 1024**3


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder lies."""
    return shutil.disk_usage(folder).free


class HealthMonitor(TrainerCallback):
    """Reads every log of the trainer and says once what is wrong, since when, and what to change.

    Acts on the main process only. A resumed run keeps the warnings it had up to the step it goes on from and does not
    repeat them; the windows over which conditions are watched, and first values, begin anew. A metric that the trainer
    does not log makes its check inapplicable; `health.json` says which checks saw something.

    Args:
        path: of `health.json`.
        say: prints a warning, e.g. `RichProgress.note`; None prints nothing.
        limits: thresholds, see `HealthLimits` for the defaults, which are our choice.
        free: free disk space of a folder in bytes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        say: Callable[[str], None] | None = None,
        limits: HealthLimits | None = None,
        free: Callable[[Path], int] = free_bytes,
    ):
        self.path = Path(path)
        self.limits = limits or HealthLimits()
        self._say, self._free = say, free
        self._start()

    def _start(self) -> None:
        self._checks: list[Check] = all_checks(self.limits)
        self._found: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._last_step = 0
        self._step_began = math.nan
        self._step_seconds: list[float] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Called once for each `train()`, on every rank; takes back earlier warnings of a resumed run."""
        self._start()
        if not state.is_world_process_zero:
            return
        self._last_step = state.global_step
        if state.global_step > 0 and self.path.exists():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))["warnings"]
            self._found = [item for item in earlier if item["step"] <= state.global_step]
        self._look_at_disk(args, state, model)
        self._write()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before each optimizer step; starts the clock, so that evaluations and saving do not count."""
        self._step_began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after each optimizer step; stops the clock."""
        self._step_seconds.append(time.monotonic() - self._step_began)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Called for each logging event on every rank; the first looks, and `logs` is not changed."""
        if not state.is_world_process_zero or not logs or not is_step_log(logs):
            return
        count = len(self._step_seconds)
        seconds = math.fsum(self._step_seconds) / count if count else math.nan
        log = Log(state.global_step, min(self._last_step + 1, state.global_step), seconds, dict(logs))
        self._step_seconds, self._last_step = [], state.global_step
        for check in self._checks:
            if check.applies(log):
                self._seen.add(check.name)
            if not self._has(check.name) and (finding := check.look(log)) is not None:
                self._warn(check.name, finding, state)
        self._look_at_disk(args, state, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when `train()` returns; the file then says which checks applied."""
        if state.is_world_process_zero:
            self._write()

    def _look_at_disk(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Early when there is space for a few checkpoints only, and once more when the next one may not fit."""
        folder = Path(args.output_dir)
        needed = _next_save_bytes(args, model)
        if not needed or not folder.exists():
            return
        self._seen.add("disk")
        free = self._free(folder)
        seen = f"{free / GIB:.1f} GiB are free in {folder}, and the next save needs about {needed / GIB:.1f} GiB"
        advice = (
            "Free space, or set trainer.save_total_limit or trainer.save_only_model, or another trainer.output_dir."
        )
        if free < needed and not self._has("disk_full"):
            text = f"{seen}: the run will fail there, and the end of a run saves too. {advice}"
            self._warn("disk_full", Finding(state.global_step, text), state)
        elif free < self.limits.spare_checkpoints * needed and not self._has("disk", "disk_full"):
            self._warn("disk", Finding(state.global_step, f"{seen}. {advice}"), state)

    def _has(self, *names: str) -> bool:
        return any(item["check"] in names for item in self._found)

    def _warn(self, name: str, finding: Finding, state: TrainerState) -> None:
        since = f" (since step {finding.since})" if finding.since < state.global_step else ""
        self._found.append(
            {"check": name, "step": state.global_step, "since_step": finding.since, "text": finding.text}
        )
        if self._say is not None:
            self._say(f"warning, step {state.global_step}{since}: {finding.text}")
        self._write()

    def _write(self) -> None:
        needs = {check.name: check.needs for check in self._checks} | {"disk": ("a checkpoint or a model's size",)}
        checks = {
            name: "active" if name in self._seen else f"not applicable: not logged so far: {', '.join(metrics)}"
            for name, metrics in needs.items()
        }
        write_json(self.path, {"warnings": self._found, "checks": checks, "limits": asdict(self.limits)})


def _next_save_bytes(args: TrainingArguments, model: Any) -> int:
    """Size of the last checkpoint; before there is one, that of the weights, and of Adam's two float32 moments.

    Parameters sharded over ranks count with this rank's part, so the estimate is then too low until the first
    checkpoint. 0 = unknown.
    """
    checkpoints = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if checkpoints and args.save_strategy != "no":
        return sum(path.stat().st_size for path in checkpoints[-1].rglob("*") if path.is_file())
    if model is None:
        return 0

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trainable if isinstance(model, PeftModel) else list(model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    has_optimizer = args.save_strategy != "no" and not args.save_only_model
    return weights + (8 * sum(parameter.numel() for parameter in trainable) if has_optimizer else 0)
