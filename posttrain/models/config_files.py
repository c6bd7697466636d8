"""Configuration files of a model and an adapter, read so that a mistake in them is one line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from posttrain.errors import ConfigError

# Files of a model's folder that are one JSON mapping; of the first the sizes are looked at, too.
_MAPPINGS = (
    *("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "adapter_config.json", "model.safetensors.index.json"),
)
_TEMPLATE = "chat_template.jinja"
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_LARGEST = 2**40
_MOST_PARTS = 2000  # layers; and a hundred times as many heads or experts
_LAYERS = re.compile(r"(num_|n_)(hidden_|decoder_|encoder_)?(layers?)|num_blocks|depth")
_PARTS = re.compile(r"(num|n)_(\w+_)?(heads?|experts?|groups?)(_\w+)?")
_SIZES = re.compile(r"vocab_size|hidden_size|d_model|n_embd|head_dim|max_position_embeddings|n_positions")
_POSITIVE = re.compile(r"num_attention_heads|n_heads?|num_key_value_heads|num_heads")


def inspect_folder(folder: str | Path) -> None:
    """Read the small files of a local model folder as upstream will, before it does.

    Args:
        folder: of a model, tokenizer or adapter; a file that is not there is not asked for.

    Raises:
        ConfigError: a file is no JSON mapping in UTF-8, or a size in config.json cannot be.
    """
    place = Path(folder)
    for name in _MAPPINGS:
        if (place / name).is_symlink() and not (place / name).exists():
            raise ConfigError(f"{name} is a link to nothing", where="model.path", got=str(folder), fix="Copy it again")
    there = [name for name in _MAPPINGS if (place / name).exists()]
    there += [_TEMPLATE] if (place / _TEMPLATE).is_file() else []
    _inspect(place, tuple((name, *_state(place / name)) for name in there))


def _state(file: Path) -> tuple[int, int, int]:
    """What is another once a file was changed; its time of change cannot be set back."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_ctime_ns


@lru_cache(maxsize=64)
def _inspect(place: Path, states: tuple[tuple[str, int, int, int], ...]) -> None:
    """`inspect_folder` for files in these states: stages of a recipe ask again, and tokenizer.json may be large."""
    for name, *_ in states:
        if name == _TEMPLATE:
            _decoded(place / name)
            continue
        values = read_mapping(place / name)
        for key, value, allowed in _impossible(values) if name == "config.json" else ():
            what, fix = f"{name}: {key} cannot be this", "Correct config.json of the model"
            raise ConfigError(what, where="model.path", got=value, allowed=allowed, fix=fix)


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds.

    Raises:
        ConfigError: it cannot be read, is empty, no UTF-8, no JSON, no mapping, or gives one key two values.
    """
    facts: Any = {"where": "model.path", "got": str(file.parent), "fix": "Copy the file again"}
    text = _decoded(file)
    if not text.strip():
        raise ConfigError(f"{file.name} is empty", **facts)
    try:
        values = json.loads(text, object_pairs_hook=_pairs)
    except _TwoValuesError as problem:
        fix = "Keep the right one: programs differ in which they take"
        raise ConfigError(f"{file.name} gives {problem} two values", **{**facts, "fix": fix}) from None
    except (ValueError, RecursionError) as problem:
        told = "it is nested too deeply" if isinstance(problem, RecursionError) else reason(problem)
        raise ConfigError(f"{file.name} is no JSON: {told}", **facts) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file.name} holds no mapping", **facts)
    return values


class _TwoValuesError(ValueError):
    """A key that stands twice in one mapping with different values."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, value in pairs:
            if value != values[name]:
                raise _TwoValuesError(repr(name))
    return values


def _decoded(file: Path) -> str:
    facts: Any = {"where": "model.path", "got": str(file.parent)}
    if not file.is_file():
        raise ConfigError(f"{file.name} is no file", **facts, fix="Copy it again")
    try:
        raw = file.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{file.name} cannot be read: {problem.strerror}", **facts) from None
    if raw.startswith((codecs.BOM_UTF8, *_OTHER_ENCODINGS)) or b"\0" in raw[:4]:
        mark = "begins with a byte order mark" if raw.startswith(codecs.BOM_UTF8) else "is UTF-16, UTF-32 or no text"
        raise ConfigError(f"{file.name} {mark}", **facts, fix="Save it as plain UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        told = f"{file.name} is not UTF-8: byte {raw[problem.start]:#04x} at {problem.start}"
        raise ConfigError(told, **facts, fix="Save it as UTF-8") from None


def _impossible(values: Any, above: str = "", depth: int = 0) -> Iterator[tuple[str, Any, str]]:
    """(key, value, what is allowed) of sizes in a configuration that no model has."""
    for key, value in values.items():
        place = f"{above}{key}"
        if isinstance(value, dict) and depth < 8:
            yield from _impossible(value, f"{place}.", depth + 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, int) and abs(value) > _LARGEST:
            yield place, value, f"at most {_LARGEST}"
        elif _LAYERS.fullmatch(key) and not 0 <= value <= _MOST_PARTS:
            yield place, value, f"0 to {_MOST_PARTS}"
        elif (_POSITIVE.fullmatch(key) or _SIZES.fullmatch(key)) and value <= 0:
            yield place, value, "a number above 0"
        elif _PARTS.fullmatch(key) and not 0 <= value <= 100 * _MOST_PARTS:
            yield place, value, f"0 to {100 * _MOST_PARTS}"


def load_config(path: str, *, revision: str | None = None, trusted: bool = False) -> Any:
    """The configuration of a folder or Hub id.

    Raises:
        ConfigError: a file of the folder is damaged, or transformers does not take a value in it.
    """
    if Path(path).is_dir():
        inspect_folder(path)
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
    values = read_mapping(file)
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str):
        fix = "Write the model that it was trained on as base_model_name_or_path"
        raise ConfigError(f"{file.name} names no base model", where="model", got=str(file), fix=fix)
    return values


def reason(problem: BaseException) -> str:
    """The message of an error on one line; with its kind, where the message alone may be a mere name."""
    kind = "" if isinstance(problem, OSError | ValueError | ImportError) else f"{type(problem).__name__}: "
    return kind + " ".join(str(problem).split())[:300].rstrip(".")
