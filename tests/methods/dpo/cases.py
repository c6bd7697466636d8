"""What the batteries need to know of dpo."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from tests.config.bases import SFT

RECIPE = {
    **SFT,
    "method": {"name": "dpo"},
    "data": {**SFT["data"], "train": {"task": "preferred_sums", "size": 32, "seed": 1}},
}
WITHOUT = ("loss_aggregation",)
RANKS = {"ipo": {"preference_loss": "ipo"}, "no reference": {"preference_loss": "simpo", "target_margin": 0.5}}
ENGINE_RUNS = {"adapters": {"lora": True}}


def inputs(rows: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """The demonstration is the better answer; the other is its beginning with a wrong end."""
    if "chosen" in rows.column_names or "solution" not in rows.column_names:
        return rows, {}
    rejected = [f"{text[:2]}no{'o' * (place % 3)}" for place, text in enumerate(rows["solution"])]
    rows = rows.rename_column("solution", "chosen")
    return rows.add_column("rejected", rejected), {}
