"""A small recipe that passes every check, ways to write variations of it, and to check them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from posttrain.errors import ConfigError

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
BASES["masked_thought"] = {**SFT, "method": {"name": "masked_thought"}}
BASES |= {key: {**GRPO, "method": {"name": key}} for key in ("chord", "luffy", "rft_cpt", "sasr", "srft")}
BASES["rmt"] = {
    **GRPO,
    "method": {"name": "rmt", "prompt_template": "Next?\n{context}", "token_budget_initial": 8},
    "data": {
        "train": {"task": "woven_text", "size": 32, "seed": 1, "format": "text"},
        "eval": {"task": "woven_text", "size": 8, "seed": 2, "options": {"form": "reasoning", "split": "eval"}},
        "max_prompt_length": 200,
    },
    "rollout": {**GRPO["rollout"], "rewards": ["next_token"]},
}
BASES["unlearning_paths"] = {**SFT, "method": {"name": "unlearning_paths", "unlearn_loss": "ga"}}
BASES["aioli"] = {
    **SFT,
    "method": {
        "name": "aioli",
        "demonstration_column": "prompt",
        "mixing_rounds_every": 2,
        "controller": "stratified",
    },
    "data": {
        "train": {"task": "markov_text", "size": 32, "seed": 1, "format": "text"},
        "validation": {"task": "markov_text", "size": 16, "seed": 2, "format": "text", "options": {"split": "eval"}},
        "eval": GRPO["data"]["eval"],
        "max_prompt_length": 200,
    },
}
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


GOOD_ROW = {"prompt": "2+3=?", "answer": "5", "solution": "Answer: 5"}


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {**GOOD_ROW, "prompt": f"{i}+3=?", "answer": str(i + 3), "solution": f"Answer: {i + 3}", **columns}
        for i in range(count)
    ]


def checked(
    folder: Path,
    base: str,
    changes: dict[str, Any],
    *,
    world_size: int = 1,
    will_train: bool = False,
    show_rows: int = 0,
) -> Any:
    """Report on a changed recipe."""
    from posttrain.config.loader import load
    from posttrain.preflight.check import check

    cfg = load(write(folder, changed(BASES[base], changes)))
    return check(cfg, world_size=world_size, will_train=will_train, show_rows=show_rows)


def told(report: Any, kind: type = ConfigError, *, warning: bool = False) -> str:
    """The one finding of a report."""
    found = report.warnings if warning else report.errors
    assert len(found) == 1, report.lines()
    assert isinstance(found[0], kind), repr(found[0])
    assert "recipe.yaml" in str(found[0]), "the place comes first"
    return str(found[0])
