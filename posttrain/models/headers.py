"""What a folder's weight files hold, from their headers: names, shapes and types of the tensors. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    from safetensors import SafetensorError, safe_open

    place = Path(folder)
    if (place / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    elif (place / _INDEX).is_file():
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
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


def other_shapes(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """(shape in the file, shape that the configuration gives) of tensors whose names agree and whose shapes do not."""
    both = {name: (stored[name].shape, shape) for name, shape in shapes.items() if name in stored}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def absent(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]) -> list[str]:
    """Weights of the model that its files lack, which would get random values.

    Empty where the files hold names that the model does not have: they are then renamed or merged while they load.

    Args:
        stored: of the files. shapes: of the model's weights.
        tied: names of weights that are one with another, to the other's.
    """
    if not stored or not set(stored) <= set(shapes) | set(tied):
        return []
    groups: dict[str, set[str]] = {}
    for name, other in tied.items():
        group = groups.setdefault(other, {other})
        group.add(name)
    return [name for name in shapes if name not in tied and not (groups.get(name, {name}) & set(stored))]


def stored_dtype(stored: Mapping[str, Stored]) -> str | None:
    """Type of the first tensor with fractions, as `dtype: auto` takes it where the configuration names none."""
    return next((one.dtype for one in stored.values() if one.dtype in _DTYPES.values()), None)
