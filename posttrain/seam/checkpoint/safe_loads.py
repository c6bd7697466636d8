"""Reading an engine's checkpoint without running what is in it.

deepspeed 0.19 reads its files by `torch.load(weights_only=False)`, which runs any code that a file names.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from posttrain.errors import ResumeError

# What deepspeed 0.19's own files name beside tensors and plain values.
_KNOWN = (
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("deepspeed.runtime.utils", "PartitionedTensor"),
)


def _known() -> list[Any]:
    found = []
    for module, name in _KNOWN:
        try:
            found.append(getattr(import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return found


@contextmanager
def weights_only_loads(*, is_deepspeed: bool) -> Iterator[None]:
    """While the block runs, every `torch.load` reads tensors, plain values and the known classes alone.

    Raises:
        ResumeError: a file that names anything else; nothing of it was run.
    """
    if not is_deepspeed:
        yield
        return
    original = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            told = " ".join(str(error).split())
            raise ResumeError(
                "a file of the checkpoint names code, which is not run",
                where=str(args[0]) if args else None,
                got=told[:300],
                fix="Resume from a checkpoint that this version of DeepSpeed wrote, or start anew",
            ) from None

    torch.load = load
    try:
        with torch.serialization.safe_globals(_known()):
            yield
    finally:
        torch.load = original
