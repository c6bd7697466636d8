"""The two small recipes that all others of the tests are made from: a policy run and a supervised one."""

from __future__ import annotations

from typing import Any

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
SFT: dict[str, Any] = {
    **{block: GRPO[block] for block in ("model", "data", "trainer")},
    "method": {"name": "sft"},
    "eval": {"num_prompts": 4, "verifier": "exact", "max_new_tokens": 32},
}
