"""Which controller reads which setting.

What only another one would be given from outside (proportions, a graph, a model, a prior) is refused. The numbers of
another one are warned about: a recipe may be run with several controllers by changing one key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONLINE = ("aioli", "skillit", "doremi", "doge")
NUMBERS = (
    "learn_sweeps",
    "learn_steps",
    "one_hot_factor",
    "ema",
    "normalize_matrix",
    "diagonal",
    "static_matrix",
    "eta",
    "step_size",
    "smoothing",
)
READ_BY: dict[str, tuple[str, ...]] = {
    "learn_sweeps": ("aioli",),
    "learn_steps": ("aioli",),
    "one_hot_factor": ("aioli",),
    "ema": ("aioli",),
    "normalize_matrix": ("aioli",),
    "diagonal": ("aioli",),
    "static_matrix": ("aioli",),
    "eta": ("aioli", "skillit"),
    "step_size": ("doremi", "doge"),
    "smoothing": ("doremi",),
    "proportions": ("static",),
    "proportions_from": ("static",),
    "skill_graph": ("skillit",),
    "reference_model": ("doremi",),
    "prior": ONLINE,
    "prior_steps": ONLINE,
}


def explain_unread_setting(name: str) -> str:
    """Who reads a setting, for messages."""
    readers = READ_BY[name]
    return f"read by the controller{'s' * (len(readers) > 1)} {', '.join(readers)} alone"


def kept_for(controller: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """A method block without the settings that a controller does not read."""
    return {name: value for name, value in method.items() if controller in READ_BY.get(name, (controller,))}
