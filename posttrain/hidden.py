"""Secrets, and values that `${env:NAME}` brought into a recipe: a process uses them, and writes them nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "<hidden>"
# Characters: alone, and as part of a longer text, where short ones would blank out ordinary words.
_LEAST, _LEAST_PART = 4, 8
_PLAIN = re.compile(r"[-+]?[\d_.]+(?:[eE][-+]?\d+)?|true|false|yes|no|on|off|null|none|~|", re.IGNORECASE)
_VALUES: set[str] = set()
_SECRET_NAME = re.compile(
    r"(^|[_.\-])(token|secret|password|passwd|passphrase|credentials?|authorization|(api|access|secret|private)_?key)$",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(r"(pad|eos|bos|unk|sep|cls|mask|image|stop|special)_token$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|AKIA[A-Z0-9]{16})\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def remember(value: str, *, is_secret: bool) -> None:
    """Hide this value from now on.

    Args:
        value: of an environment variable.
        is_secret: whether its name says that it is one. Of others, numbers, truth values and paths of what is there
            are no secrets, and words of fewer than 8 characters may be any setting.
    """
    is_setting = len(value) < _LEAST_PART or _PLAIN.fullmatch(value) or _is_place(value)
    if (is_secret and len(value) >= _LEAST) or not is_setting:
        _VALUES.add(value)


def hide(text: str) -> str:
    """The text without remembered values."""
    if text in _VALUES:
        return HIDDEN
    for value in sorted(_VALUES, key=len, reverse=True):
        if len(value) >= _LEAST_PART:
            text = text.replace(value, HIDDEN)
    return text


def is_hidden(value: object) -> bool:
    """Whether a number is one of the remembered values."""
    return str(value) in _VALUES


def _is_place(value: str) -> bool:
    """Whether it is a path whose beginning exists."""
    parts = Path(value).expanduser().parts
    try:
        return len(parts) > 1 and Path(*parts[:2]).exists()
    except OSError:
        return False


def without_secrets(value: Any, *, name: str = "") -> Any:
    """A copy of a nested value in which secrets are replaced by "<hidden>"; `name` is the key it stands under.

    Tuples become lists.
    """
    if isinstance(value, dict):
        return {key: without_secrets(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name=name) for item in value]
    if not isinstance(value, str) or not value:
        return HIDDEN if isinstance(value, int | float) and is_hidden(value) else value
    if is_secret_name(name):
        return HIDDEN
    value = hide(value)
    for secret in _secrets_in_environment():
        value = value.replace(secret, HIDDEN)
    return _SECRET_VALUE.sub(HIDDEN, value)


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is a secret."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def _secrets_in_environment() -> list[str]:
    """Values that `${env:NAME}` may have brought into a recipe; short ones would blank out ordinary words."""
    values = [value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= 8]
    return sorted(values, key=len, reverse=True)
