"""How far the update of one run is from another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

# float32 sums in another order; measured differences are below half of it.
TOLERANCE = 1e-5
# A tensor that hardly moves is measured against this part of the model's mean movement: what it does is rounding.
_FLOOR = 0.1


def worst_difference(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, str]:
    """|found - expected| / |expected| of the tensor where it is largest, and that tensor's name.

    Args:
        found, expected: arrays by name, e.g. the updates of every trained parameter.

    Returns:
        (inf, name) where one of them lacks the tensor or holds a value that is not finite; (0.0, name) where neither
        moved.
    """
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        return float("inf"), odd[0]
    sizes = {name: _norm(value) for name, value in expected.items()}
    elements = sum(value.size for value in expected.values())
    mean = (sum(size**2 for size in sizes.values()) / max(1, elements)) ** 0.5
    worst = (0.0, next(iter(expected), ""))
    for name, value in expected.items():
        if not np.isfinite(found[name]).all() or not np.isfinite(value).all():
            return float("inf"), name
        distance = _norm(found[name].astype(np.float64) - value.astype(np.float64))
        scale = max(sizes[name], _FLOOR * mean * value.size**0.5)
        figure = distance / scale if scale else (float("inf") if distance else 0.0)
        worst = max(worst, (figure, name), key=lambda entry: entry[0])
    return worst


def moved(update: dict[str, Any]) -> float:
    """Norm of the whole update."""
    return sum(_norm(value) ** 2 for value in update.values()) ** 0.5


def read(file: Path) -> dict[str, Any]:
    """Tensors of a safetensors file as arrays."""
    return load_file(file)


def _norm(value: Any) -> float:
    return float(np.linalg.norm(value.astype(np.float64)))
