"""GRPO (arXiv 2402.03300), and every other row of the estimator's preset table: the base of the policy methods."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="group-relative policy gradient with every preset of the unified estimator",
    paper=Paper(
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open LMs",
        "2402.03300",
        2024,
        author="Shao",
    ),
    config="posttrain.seam.policy.trainer:PolicyConfig",
    trainer="posttrain.seam.policy.trainer:PolicyTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
)
