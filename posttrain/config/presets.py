"""Presets of the `stages` block: a mapping `{preset: NAME, ...}` that stands for a list of ordinary stages.

A preset is a function from the recipe (plain dicts) to its stages, which a room declares in `Method.plans`; it owns no
training loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain import registry
from posttrain.errors import ConfigError, nearest


def expand(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that a recipe's `stages: {preset: NAME, ...}` stands for; a lineage names the preset.

    Args:
        values: the whole recipe.

    Raises:
        ConfigError: an unknown preset, or what the preset refuses.
    """
    plans, name = registry.declared("plans"), values["stages"].get("preset")
    if not isinstance(name, str) or name not in plans:
        raise ConfigError(
            "a list of stages is expected, or a mapping that names a preset",
            where="stages" if name is None else "stages.preset",
            got=name,
            allowed=f"one of: {', '.join(plans)}",
            fix=nearest(name, plans),
        )
    method, path = plans[name]
    stages: list[dict[str, Any]] = method.load(path)(values)
    for stage in stages:
        if stage.get("lineage"):
            stage["lineage"] = {"preset": name, **stage["lineage"]}
    return stages
