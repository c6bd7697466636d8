"""Configuration files of a model and an adapter, read so that a mistake in them is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from posttrain.errors import ConfigError


def load_config(path: str, *, revision: str | None = None, trusted: bool = False) -> Any:
    """The configuration of a folder or Hub id.

    Raises:
        ConfigError: it cannot be read, or transformers does not take a value in it.
    """
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusted)
    except Exception as problem:  # noqa: BLE001 - what the file holds may be anything
        what = f"the model's configuration cannot be read: {reason(problem)}"
        raise ConfigError(what, where="model.path", got=path, fix="Correct config.json of the model") from problem


def read_adapter(file: Path) -> dict[str, Any]:
    """`adapter_config.json`, with the name of its base model.

    Raises:
        ConfigError: it is no JSON, or names none.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        what = f"{file.name} is no JSON: {reason(problem)}"
        raise ConfigError(what, where="model", got=str(file), fix="Copy the file again") from problem
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str):
        fix = "Write the model that it was trained on as base_model_name_or_path"
        raise ConfigError(f"{file.name} names no base model", where="model", got=str(file), fix=fix)
    return dict(values)


def reason(problem: Exception) -> str:
    """The message of an error on one line; with its kind, where the message alone may be a mere name."""
    kind = "" if isinstance(problem, OSError | ValueError | ImportError) else f"{type(problem).__name__}: "
    return kind + " ".join(str(problem).split())[:300].rstrip(".")
