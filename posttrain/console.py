"""What a process says to the user, and how it leaves the others."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.errors import PosttrainError, explains_imports

_TOLD: set[str] = set()  # sentences that a user reads once: from `check`, or else from the trainer that finds the same
# Seconds that other ranks leave to rank 0 to tell a mistake which all of them made.
_PATIENCE = 30.0
_GRACE = 2.0  # the same after SIGTERM, where a scheduler waits for all to end
# What gloo and NCCL say in a process whose peer has gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def is_main_process() -> bool:
    """Whether this is rank 0 of the whole run."""
    return int(os.environ.get("RANK", "0")) == 0


def console() -> Any:
    """Where tables go."""
    from rich.console import Console

    # Off a terminal rich assumes 80 columns and would break paths and messages there.
    return Console() if sys.stdout.isatty() else Console(width=200)


def say(text: str) -> None:
    """Print a line for the user."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def show_error(error: Exception) -> None:
    """Print a user's mistake on standard error: one line each, without a traceback."""
    found = getattr(error, "errors", [error])
    for item in found:
        sys.stderr.write(f"error: {item}\n")
    if len(found) > 1:
        sys.stderr.write(f"{len(found)} errors\n")


def quiet_libraries() -> None:
    """Leave the console to the run: no bars for steps that take a moment, no notice of a device nobody asked for."""
    import datasets
    import torch
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def leave_group() -> None:
    """Take the process group down in order. torch 2.13: gloo can wait for ever where a DDP model outlives it."""
    import gc

    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def exit_status(command: Callable[[], object]) -> int:
    """Call what a process was started for, and have a user's mistake told in one line each, without a traceback.

    Args:
        command: what it returns is the status if it is a number other than 0.

    Returns:
        0; 2 after a user's mistake, 143 after SIGTERM, 130 after Ctrl-C. One of several processes ends here instead of
        returning where the others may not be in step.
    """
    try:
        with _told_by_launcher(), explains_imports():
            done = command()
    except PosttrainError as error:
        if is_main_process():
            show_error(error)
        elif not error.is_reported:
            # Rank 0 tells it and leaves, and the launcher then ends this process. To leave first would end rank 0.
            is_request = error.exit_status != PosttrainError.exit_status  # a stop that was asked for: told by rank 0
            time.sleep(_GRACE if is_request else _PATIENCE)
            if not is_request:
                tell_with_rank(error)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave_at_once(error.exit_status)
        return error.exit_status
    except KeyboardInterrupt:
        _leave_at_once(128 + signal.SIGINT)
    if "torch" in sys.modules:
        leave_group()
    return done if isinstance(done, int) else 0


def tell_with_rank(error: PosttrainError) -> None:
    """Tell a mistake in a process other than the main one."""
    error.is_reported = True
    sys.stderr.write(f"rank {os.environ['RANK']}: error: {error}\n")


@contextmanager
def _told_by_launcher() -> Iterator[None]:
    """Have the first unexpected error of several processes stand last: the launcher ends its report with it.

    A process that only lost the connection to another one says that in a line and leaves the cause to the one that
    knows it, or to the launcher where it was killed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST):
            sys.stderr.write(
                f"rank {os.environ['RANK']}: another process of this run ended; the cause is told below\n"
            )
            sys.stderr.flush()
            time.sleep(_PATIENCE)  # the launcher, which ends this process, takes the first to leave for the cause
            _leave_at_once(1)
        get_error_handler().record_exception(error)
        raise


def _leave_at_once(status: int) -> None:
    """End this process where the others may not be in step: torch 2.13's gloo threads can abort a normal exit."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().show_cursor(True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below one hour."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def mark_reported(sentence: str) -> None:
    """Note that the user has been shown this."""
    _TOLD.add(sentence)


def warn_once(logger: logging.Logger, sentence: str) -> None:
    """Log a warning that this process has not shown before."""
    if sentence not in _TOLD:
        _TOLD.add(sentence)
        logger.warning(sentence)
