"""A small recipe that passes every check, and ways to write variations of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

GRPO: dict[str, Any] = {
    "method": {"name": "grpo"},
    "model": {"tiny": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64}},
    "data": {
        "train": {"task": "arithmetic", "size": 32, "seed": 1},
        "eval": {"task": "arithmetic", "size": 8, "seed": 2},
        "max_prompt_length": 200,
    },
    "rollout": {"num_generations": 4, "max_completion_length": 64, "rewards": ["exact"]},
    "trainer": {
        "learning_rate": 0.001,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "save_steps": 1,
        "use_cpu": True,
    },
    "eval": {"num_prompts": 4},
}
HPT = {**GRPO, "method": {"name": "hpt", "switch_gate": 0.0}}
SFT: dict[str, Any] = {
    **{block: GRPO[block] for block in ("model", "data", "trainer")},
    "method": {"name": "sft"},
    "eval": {"num_prompts": 4, "verifier": "exact", "max_new_tokens": 32},
}
BASES = {"grpo": GRPO, "hpt": HPT, "sft": SFT}
REMOVE = object()


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with dotted keys set; the value `REMOVE` takes a key out."""
    values = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target: Any = values
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if value is REMOVE:
            del target[last]
        else:
            target[last] = value
    return values


def write(folder: Path, values: dict[str, Any], name: str = "recipe.yaml") -> Path:
    """Write a recipe and return its path; the folder of the run lies beside it unless the recipe says otherwise."""
    values = copy.deepcopy(values)
    if isinstance(values.get("trainer"), dict):
        values["trainer"].setdefault("output_dir", str(folder / "run"))
    path = folder / name
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    with path.open("w") as file:
        writer.dump(values, file)
    return path
