"""Presets of the `stages` block: a mapping `{preset: NAME, ...}` that stands for a list of ordinary stages.

A preset is a function from the recipe (plain dicts) to its stages; it owns no training loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.errors import ConfigError
from posttrain.methods.aioli import plan as mixing_arms
from posttrain.methods.dmt import plan as composition
from posttrain.methods.rft_cpt import plan as continual
from posttrain.methods.unlearning_paths import plan as path_study

Preset = Callable[[Mapping[str, Any]], list[dict[str, Any]]]
PRESETS: dict[str, Preset] = {
    **composition.PRESETS,
    **continual.PRESETS,
    **path_study.PRESETS,
    **mixing_arms.PRESETS,
}


def expand(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that a recipe's `stages: {preset: NAME, ...}` stands for.

    Args:
        values: the whole recipe.

    Raises:
        ConfigError: an unknown preset, or what the preset refuses.
    """
    name = values["stages"].get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        raise ConfigError(
            "a list of stages is expected, or a mapping that names a preset",
            where="stages" if name is None else "stages.preset",
            got=name,
            allowed=f"one of: {', '.join(PRESETS)}",
            fix=f"Perhaps you mean {close[0]!r}" if close else None,
        )
    return PRESETS[name](values)
