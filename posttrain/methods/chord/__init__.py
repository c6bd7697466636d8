"""CHORD (arXiv 2508.11408): a policy loss and a supervised loss in every step, the share of the second decaying."""

from __future__ import annotations

from posttrain.registry import ENGINES, Curve, Method, Paper

METHOD = Method(
    kind="policy",
    summary="supervised and policy losses in every step, the share of the first decaying",
    paper=Paper(
        "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement "
        "Learning via Dynamic Weighting",
        "2508.11408",
        2025,
        author="Zhang",
    ),
    config="trainer:CHORDConfig",
    trainer="trainer:CHORDTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
    curves=(
        Curve(
            "chord/supervised_share", "supervised share", "Share of the supervised loss in a step", "weight (0 to 1)"
        ),
    ),
)
