"""Hybrid Post-Training (arXiv 2509.04419): prompt by prompt, RL where the model sometimes succeeds, SFT where it does
not."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="RL where the model solves the prompt, a demonstration where it does not",
    paper=Paper("Towards a Unified View of Large Language Model Post-Training", "2509.04419", 2025, author="Lv"),
    config="trainer:HPTConfig",
    trainer="trainer:HPTTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
)
