"""LUFFY (arXiv 2504.14945): each prompt's demonstration is compared with its rollouts and learnt off-policy."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="each prompt's demonstration in the group of its rollouts, learnt off-policy",
    paper=Paper("Learning to Reason under Off-Policy Guidance", "2504.14945", 2025, author="Yan"),
    config="trainer:LUFFYConfig",
    trainer="trainer:LUFFYTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
)
