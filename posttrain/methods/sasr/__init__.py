"""SASR: each optimizer step is supervised or a policy step, by how far the policy is from its demonstrations."""

from __future__ import annotations

from posttrain.registry import ENGINES, Curve, Method, Paper

METHOD = Method(
    kind="policy",
    summary="supervised and GRPO steps in turn, the share of the first following its gradient norm",
    paper=Paper(
        "Step-wise Adaptive Integration of Supervised Fine-tuning and Reinforcement Learning for Task-Specific LLMs",
        "2505.13026",
        2025,
        author="Chen",
    ),
    config="trainer:SASRConfig",
    trainer="trainer:SASRTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
    curves=(
        Curve(
            "sasr/supervised_prob",
            "chance supervised",
            "Chance that an optimizer step is supervised",
            "probability (0 to 1)",
        ),
        Curve(
            "sasr/g_sft", "norm", "Gradient norm of supervised steps, before clipping", "global L2 norm", shown=False
        ),
    ),
)
