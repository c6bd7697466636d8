"""What a process says to the user, and how it leaves the others."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """Whether this is rank 0 of the whole run."""
    return int(os.environ.get("RANK", "0")) == 0


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
