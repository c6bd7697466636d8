"""What the batteries need to know of rmt."""

from __future__ import annotations

from tests.config.bases import GRPO

RECIPE = {
    **GRPO,
    "method": {"name": "rmt", "prompt_template": "Next?\n{context}", "token_budget_initial": 8},
    "data": {
        "train": {"task": "woven_text", "size": 32, "seed": 1, "format": "text"},
        "eval": {"task": "woven_text", "size": 8, "seed": 2, "options": {"form": "reasoning", "split": "eval"}},
        "max_prompt_length": 200,
    },
    "rollout": {**GRPO["rollout"], "rewards": ["next_token"]},
}
# The budget of 3 comes first in the question, so that `replay` finds its odd number there.
SETTINGS = {
    "prompt_template": "{context}",
    "budget_prompt": "{budget}+",
    "token_budget_initial": 3,
    "completion_margin": 4,
    "max_rollouts_without_answer": None,
}
