"""posttrain: LLM post-training methods on Hugging Face, checked against their papers.

Importing the package loads neither torch nor trl. The public names below load their module on first use, and so do
the config and the trainer of every method: `from posttrain import HPTConfig, HPTTrainer`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Read by huggingface_hub at its first import: no usage data leaves the machine unless the user sets it otherwise.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "PolicyConfig": "posttrain.seam.policy.trainer",
    "PolicyTrainer": "posttrain.seam.policy.trainer",
    "SupervisedConfig": "posttrain.seam.supervised.trainer",
    "SupervisedTrainer": "posttrain.seam.supervised.trainer",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def _of_methods() -> dict[str, str]:
    """Class -> module of the configs and trainers that methods declare."""
    declared = import_module("posttrain.registry").trained().values()
    places = (method.place(path) for method in declared for path in (method.config, method.trainer))
    return {name: module for module, _, name in (place.partition(":") for place in places)}


def __getattr__(name: str) -> Any:
    known = _PUBLIC if name in _PUBLIC else {} if name.startswith("_") else _of_methods()
    if name in known:
        return getattr(import_module(known[name]), name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_of_methods()})
