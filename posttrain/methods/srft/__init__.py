"""SRFT (arXiv 2506.19767): supervised and policy losses in every step, weighted by the policy's entropy."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="supervised and policy losses in every step, weighted by entropy",
    paper=Paper(
        "SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",
        "2506.19767",
        2025,
        author="Fu",
    ),
    config="trainer:SRFTConfig",
    trainer="trainer:SRFTTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
)
