"""What the batteries need to know of aioli."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from posttrain.data.mixture import SOURCE_COLUMN
from tests.config.bases import GRPO, SFT

RECIPE = {
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
# Controllers that decide in the run have tests of their own.
SETTINGS = {"controller": "static", "proportions": [0.5, 0.3, 0.2], "mixing_rounds_every": 2, "max_steps": 4}
_DECIDING = {"proportions": None, "mixing_rounds_every": 6, "learn_sweeps": 1, "learn_steps": 1, "one_hot_factor": 0.5}
ENGINE_RUNS = {
    "aioli decides": {
        **_DECIDING,
        "controller": "aioli",
        "eta": 3.0,
        "max_steps": 6,
        "optim": "sgd",
        "learning_rate": 0.05,
    }
}


def inputs(rows: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """Rows in three groups, and validation rows of the same."""
    from tests.batteries.runs import as_groups, dataset

    rows = rows if {"group", SOURCE_COLUMN} & set(rows.column_names) else as_groups(rows)
    return rows, {"eval_dataset": as_groups(dataset(6)) if "group" in rows.column_names else None}
