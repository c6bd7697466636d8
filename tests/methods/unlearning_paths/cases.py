"""What the batteries need to know of unlearning_paths."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from tests.config.bases import SFT

RECIPE = {**SFT, "method": {"name": "unlearning_paths", "unlearn_loss": "ga"}}
SETTINGS = {"reference": "copy", "retain_weight": 0.5}
ENGINE_RUNS = {
    "a measured reference": {"unlearn_loss": "idkdpo", "reference": "precomputed"},
    "a divergence from adapters switched off": {"retain_loss": "kl", "lora": True, "reference": "adapter_off"},
    "hidden states": {"unlearn_loss": "rmu", "module_regex": r"model\.layers\.1", "retain_loss": "embed_diff"},
}
ENGINE_RESUMES = {"unlearning": {"unlearn_loss": "idkdpo", "reference": "precomputed"}}
# Facts that are to stay known.
TOLD = dict.fromkeys(("reproduce.yaml", "reproduce_losses.yaml"), ("training prompts too",))


def inputs(rows: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """The rows are forgotten; eight others are kept."""
    from tests.batteries.runs import dataset

    return rows, {"retain_dataset": dataset(20).select(range(12, 20))}
