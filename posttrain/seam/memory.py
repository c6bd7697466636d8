"""Running out of memory, told as one error that says where and what to lower."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from posttrain.errors import PosttrainError

# The innermost of these functions on the way to the allocation tells what was going on.
_PHASES = {
    "_generate": (
        "generating completions",
        "Lower rollout.max_completion_length, or trainer.per_device_train_batch_size while raising "
        "trainer.gradient_accumulation_steps (the same update)",
    ),
    "_compute_loss": (
        "the forward pass",
        "Lower trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps (the same update), "
        "set trainer.gradient_checkpointing, or lower trainer.logits_budget_bytes",
    ),
    "backward": (
        "the backward pass",
        "Lower trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps (the same update), "
        "or set trainer.gradient_checkpointing",
    ),
    "_save_checkpoint": ("writing a checkpoint", "Run on a machine with more memory, or train adapters (model.lora)"),
    "step": (
        "the optimizer step",
        "The optimizer's moments do not fit: train adapters (model.lora), take a smaller optimizer (trainer.optim: "
        "adafactor), or share them out (accelerate_configs/)",
    ),
}
_PHASES["compute_loss"] = _PHASES["_compute_loss"]
_PHASES["_get_per_token_logps_and_entropies"] = _PHASES["_compute_loss"]


class OutOfMemory(PosttrainError):
    """The device or the machine has no memory left for what a step asks for. Checkpoints are untouched."""


@contextmanager
def explain_out_of_memory(trainer: Any) -> Iterator[None]:
    """Turn an allocation that failed inside the block into `OutOfMemory`.

    Args:
        trainer: its step, batch size and device stand in the message.

    Raises:
        OutOfMemory: for torch's and Python's own errors of that kind, of a GPU or of the machine.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        phase, fix = _phase(error)
        args = trainer.args
        asked = str(error).splitlines()[0][:200] or type(error).__name__
        raise OutOfMemory(
            f"out of memory during {phase}, with {args.per_device_train_batch_size} rows a micro-batch: {asked}",
            where=f"optimizer step {trainer.state.global_step + 1}",
            fix=f"{fix}. The last checkpoint is whole; the same command continues from it",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the machine's memory."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error) or "std::bad_alloc" in str(error)


def _phase(error: BaseException) -> tuple[str, str]:
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    for name in reversed(names):
        if name in _PHASES:
            return _PHASES[name]
    return "training", _PHASES["_compute_loss"][1]
