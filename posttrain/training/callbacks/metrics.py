"""`metrics.jsonl`: one JSON object for each logging event of the trainer, written as it happens.

Non-finite numbers are written as the strings "NaN", "Infinity" and "-Infinity"; `null` is what was logged as None. A
resumed run appends a start event. What an earlier attempt logged beyond that step is done again and therefore cut; the
start event says how many lines and seconds that were (`cut_lines`, `cut_seconds`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.reports.records import LOG, START, cut_after, json_value


class MetricsWriter(TrainerCallback):
    """Appends every log of the trainer to a JSONL file, on the main process only.

    Each line holds `event` (start or log), `step`, `epoch`, `wall_time` (Unix seconds), `elapsed_seconds` (since this
    `train()` began) and the logged names as they are. A line is on disk when the call returns.

    Args:
        path: the file, usually `RunFolder.metrics_path`; created with its folder when training begins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._began = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called once for each `train()`, on every rank; the first rank writes the start event."""
        self._began = time.monotonic()
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = cut_after(self.path, state.global_step)
            self._append(START, {"max_steps": state.max_steps, **cut}, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called on every rank for each logging event; the first rank writes it."""
        if state.is_world_process_zero and logs:
            self._append(LOG, logs, state)

    def _append(self, event: str, values: dict[str, Any], state: TrainerState) -> None:
        stamp = {
            "event": event,
            "step": state.global_step,
            "epoch": state.epoch,
            "wall_time": round(time.time(), 3),
            "elapsed_seconds": round(time.monotonic() - self._began, 3),
        }
        line = json.dumps(json_value({**stamp, **values, **stamp}), allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
