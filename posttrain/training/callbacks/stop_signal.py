"""A request to stop ends training with a checkpoint: SIGTERM, as schedulers send it before they kill, or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.console import is_main_process
from posttrain.errors import PosttrainError

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
# A launcher passes the terminal's Ctrl-C on to processes that the terminal has told already: that is no second one.
ECHO_SECONDS = 1.0


class StoppedError(PosttrainError):
    """The run was asked to stop and did, after a checkpoint; `exit_status` is that of a program that `by` ended."""

    is_shared = True

    def __init__(self, what: str, *, by: int, **facts: Any):
        super().__init__(what, **facts)
        self.exit_status = 128 + by


class StopSignal(TrainerCallback):
    """Saves and stops at the end of the optimizer step in which any rank received SIGTERM or SIGINT (Ctrl-C).

    Used as a context manager around training; outside the main thread, where no handler can be set, it does nothing.
    Either signal has its usual effect when it comes a second time, so that a second Ctrl-C leaves at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.stopped_at: int | None = None
        self._at, self._pid = 0.0, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in NAMES}
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._before):
            self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked loader of rows: the process that trains decides
        now = time.monotonic()
        if self.received == signal.SIGINT == number:
            if now - self._at > ECHO_SECONDS:
                self._restore(number)
                signal.raise_signal(number)
            return
        if number == signal.SIGTERM:
            self._restore(number)
        if not self.received:
            self.received, self._at = number, now
            if number == signal.SIGINT and is_main_process():
                # Not through a stream: the signal may have come while one was writing.
                os.write(2, b"\nstopping after this optimizer step, with a checkpoint; Ctrl-C again leaves at once\n")

    def _restore(self, number: int) -> None:
        before = self._before.pop(number, None)
        signal.signal(number, signal.SIG_DFL if before is None else before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Called after each optimizer step on every rank; all of them stop after the same one."""
        self.received = _of_any_rank(self.received, args)
        if self.received:
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True
        return control

    def raise_if_stopped(self, *, can_continue: bool) -> None:
        """Raise StoppedError if training was ended by the signal."""
        if self.stopped_at is None:
            return
        fix = "Run the same command again: it continues from there"
        if not can_continue:
            fix = "It cannot be continued, because trainer.save_only_model keeps weights alone"
        what = f"stopped by {NAMES[signal.Signals(self.received)]}, with a checkpoint after optimizer step"
        raise StoppedError(f"{what} {self.stopped_at}", by=self.received, fix=fix)


def _of_any_rank(number: int, args: TrainingArguments) -> int:
    """The signal that a rank received, 0 for none; the greater number where ranks received different ones."""
    if args.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return number
    seen = torch.tensor(number, device=args.device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return int(seen)
