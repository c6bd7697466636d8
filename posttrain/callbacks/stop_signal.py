"""A request to stop (SIGTERM, as schedulers send it before they kill) ends training with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.errors import PosttrainError


class StoppedError(PosttrainError):
    """The run was asked to stop and did, after a checkpoint. `exit_status` is that of a program ended by SIGTERM."""

    exit_status = 128 + signal.SIGTERM
    is_shared = True


class StopSignal(TrainerCallback):
    """Saves and stops at the end of the optimizer step in which any rank received SIGTERM.

    Used as a context manager around training; outside the main thread, where no handler can be set, it does nothing.
    A second SIGTERM has its usual effect.
    """

    def __init__(self) -> None:
        self.received = False
        self.stopped_at: int | None = None
        self._before: Any = None
        self._is_set = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before, self._is_set = signal.signal(signal.SIGTERM, self._note), True
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._restore()

    def _restore(self) -> None:
        if self._is_set:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
            self._is_set = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Called after each optimizer step on every rank; all of them stop after the same one."""
        if _on_any_rank(self.received, args):
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
        raise StoppedError(f"stopped by SIGTERM, with a checkpoint after optimizer step {self.stopped_at}", fix=fix)


def _on_any_rank(flag: bool, args: TrainingArguments) -> bool:
    import torch
    import torch.distributed as dist

    if args.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return flag
    seen = torch.tensor(int(flag), device=args.device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen)
