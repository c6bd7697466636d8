"""What a recipe says about verdicts: who gives them, by which code, and with which settings answers are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.data.rendering import SPECIAL_TOKENS

# A supervised method has no length of completions to take over.
DEFAULT_NEW_TOKENS = 256


def verifier_name(config: Any) -> str | None:
    """Reward whose value is the verdict: that of the eval block, else of the rollout block; None without either."""
    if config.eval is not None and config.eval.verifier is not None:
        return str(config.eval.verifier)
    if config.rollout is None:
        return None
    return str(config.rollout.verifier or config.rollout.rewards[0].name)


def verifier_sha256(config: Any) -> str | None:
    """SHA-256 of the file that the verifier is a function of; None for a packaged one."""
    return _code_sha256(config, str(verifier_name(config)))


def reward_code(config: Any) -> dict[str, str]:
    """SHA-256 of the file of every reward that is a function in one, by the reward's name."""
    names = [] if config.rollout is None else [str(entry.name) for entry in config.rollout.rewards]
    return {name: found for name in names if (found := _code_sha256(config, name)) is not None}


def _code_sha256(config: Any, name: str) -> str | None:
    file, separator, _ = name.rpartition(":")
    if not separator or config.source is None:
        return None
    path = Path(config.source.file).parent / file
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def evaluation_settings(config: Any) -> dict[str, Any]:
    """Keywords of `EvalSettings`; without a length of its own an evaluation takes that of the rollouts."""
    given = dict(config.eval.settings()) if config.eval is not None else {}
    if given.get("max_new_tokens") is None:
        given["max_new_tokens"] = getattr(config.rollout, "max_completion_length", DEFAULT_NEW_TOKENS)
    return given


def template_variables(config: Any) -> dict[str, Any]:
    """Variables of the chat template that training and evaluation use; those of rollout or trainer come first."""
    data = config.data
    found = dict(data.chat_template_kwargs or {})
    for block in (config.trainer, config.rollout):
        found |= getattr(block, "chat_template_kwargs", None) or {}
    return found if data.special_tokens_in_text == "text" else {**found, SPECIAL_TOKENS: data.special_tokens_in_text}


def recorded_variables(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a recorded recipe."""
    blocks = [config.get(name) or {} for name in ("data", "trainer", "rollout")]
    found = {key: value for block in blocks for key, value in (block.get("chat_template_kwargs") or {}).items()}
    read = blocks[0].get(SPECIAL_TOKENS, "text")
    return found if read == "text" else {**found, SPECIAL_TOKENS: read}
