"""Values that no recipe holds, whatever the key: numbers beyond 64 bits, NUL in a text, paths that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.config.source import Key, SourceMap, refuse_many_values
from posttrain.errors import ConfigError, PosttrainError

_LARGEST = 2**63 - 1
_PATHS = {"path", "output_dir", "resume", "logging_dir", "entropy_model", "verifier", "rewards"}
_PATH_BYTES, _NAME_BYTES = 4000, 255  # what Linux takes of a path, and of each name in it


def unsound(values: Any, source: SourceMap) -> list[PosttrainError]:
    """One error for every such value of a recipe.

    Args:
        values: nested mappings and lists. source: for file and line.

    Raises:
        ConfigError: more values than any recipe has.
    """
    found: list[PosttrainError] = []
    for count, (key, value) in enumerate(_leaves(values, ())):
        refuse_many_values(count, source.file)
        error = _fault(key, value, source)
        if error is not None:
            found.append(error)
    return found


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """(path, value) of everything that holds no others; the names of mappings are values, too."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str) or "\0" in name or _is_half(name):
                yield (*key, ascii(name)[:60]), name
            yield from _leaves(item, (*key, str(name)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*key, index))
    else:
        yield key, value


def _fault(key: Key, value: Any, source: SourceMap) -> PosttrainError | None:
    where = source.where(key)
    if isinstance(value, int) and abs(value) > _LARGEST:
        return ConfigError(
            "the number is too large",
            where=where,
            allowed=f"up to {_LARGEST}",
            got=f"{value:.3e}" if abs(value) < 10**300 else f"{value.bit_length()} bits",
        )
    if not isinstance(value, str):
        return None
    if "\0" in value:
        return ConfigError("the text holds a NUL character", where=where, got=value, fix="Take it out")
    if _is_half(value):
        what = "the text holds half of a character (a lone surrogate)"
        return ConfigError(what, where=where, got=ascii(value)[:60], fix="Take it out")
    if not _PATHS & {part for part in key if isinstance(part, str)}:
        return None
    if value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            return ConfigError(
                "there is no such user", where=where, got=value.partition("/")[0], fix="Write the path out"
            )
    names = value.encode().split(b"/")
    if len(value.encode()) > _PATH_BYTES or max(map(len, names)) > _NAME_BYTES:
        allowed = f"{_PATH_BYTES} bytes, {_NAME_BYTES} between slashes"
        return ConfigError("the path is too long", where=where, got=value, allowed=allowed)
    return None


def _is_half(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
