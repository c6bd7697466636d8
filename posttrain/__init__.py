"""posttrain: LLM post-training methods on Hugging Face, checked against their papers.

Importing the package loads neither torch nor trl; the public names below load their module on first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Read by huggingface_hub at its first import: no usage data leaves the machine unless the user sets it otherwise.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "HPTConfig": "posttrain.methods.hpt.trainer",
    "HPTTrainer": "posttrain.methods.hpt.trainer",
    "PolicyConfig": "posttrain.seam.policy.trainer",
    "PolicyTrainer": "posttrain.seam.policy.trainer",
    "SupervisedConfig": "posttrain.seam.supervised.trainer",
    "SupervisedTrainer": "posttrain.seam.supervised.trainer",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
