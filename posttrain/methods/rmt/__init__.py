"""Reinforcement mid-training and reinforcement pre-training: RL on unlabelled text by predicting its next token."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="RL on raw text: think, then predict the next token, with a shrinking thinking budget",
    paper=Paper("Reinforcement Mid-Training", "2509.24375", 2025),
    config="config:RMTConfig",
    trainer="trainer:RMTTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
    inputs=frozenset({"documents"}),
    step="checks:DocumentStep",
    verbs={"score-tokens": "commands:score_tokens"},
)
