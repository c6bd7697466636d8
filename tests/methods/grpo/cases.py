"""What the batteries need to know of grpo."""

from __future__ import annotations

LEARNS_FROM_SUCCESS_ALONE = True
RANKS = {"a mixture": {"mixture": True}}
ENGINE_RUNS = {
    # The policy leaves the reference with the first step; Adam's would magnify differences of the order of 1e-7.
    "a reference model": {"beta": 0.1, "optim": "sgd", "max_steps": 2},
    "adapters": {"lora": True},
}
ENGINE_RESUMES = {"grpo": {}, "remax": {"advantage_estimator": "remax"}}
