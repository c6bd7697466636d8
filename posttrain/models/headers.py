"""What a folder's weight files hold, from their headers: names, shapes and types of the tensors. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. `dtype` is torch's name of it, or the file's own where torch's is another."""

    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: str | Path) -> dict[str, Stored]:
    """Tensors of the files that transformers would load from a folder, by name; empty without such files.

    Raises:
        OSError, ValueError: a file is missing, cut off or no safetensors file; the text names it.
    """
    place = Path(folder)
    if (place / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    elif (place / _INDEX).is_file():
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
            raise ValueError(f"{_INDEX} names no files under weight_map")
        files = sorted(set(named.values()))
        if outside := [file for file in files if Path(file).name != file or not (place / file).is_file()]:
            raise ValueError(f"{_INDEX} names {outside[0][:80]!r}, which is no file of the folder")
    else:
        return {}
    found = {}
    for file in files:
        try:
            with safe_open(str(place / file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a mapping
                    part = weights.get_slice(name)
                    kind = part.get_dtype()
                    found[name] = Stored(tuple(part.get_shape()), _DTYPES.get(kind, kind))
        except (SafetensorError, OSError) as problem:
            raise ValueError(f"{file}: {' '.join(str(problem).split())[:120]}") from problem
    return found


def stored_dtype(stored: Mapping[str, Stored]) -> str | None:
    """Type of the first tensor with fractions, as `dtype: auto` takes it where the configuration names none."""
    return next((one.dtype for one in stored.values() if one.dtype in _DTYPES.values()), None)
