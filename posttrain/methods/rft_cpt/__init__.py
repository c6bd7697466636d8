"""Reinforcement fine-tuning in continual post-training (arXiv 2507.05386): policy variants and rejection sampling."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="policy",
    summary="tasks one after another by reinforcement or supervised fine-tuning, and what is forgotten",
    paper=Paper(
        "Reinforcement Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training",
        "2507.05386",
        2025,
        author="Lai",
    ),
    config="trainer:RFTCPTConfig",
    trainer="trainer:RFTCPTTrainer",
    supports=ENGINES | {"peft", "resume", "vllm"},
    steps={"rif": "filter:FilterStep"},
    plans={"continual": "plan:continual_stages"},
    outcome="outcome:sequence_metrics",
    measures="outcome:MEASURES",
    verbs={"filter": "commands:filter_rows", "study continual": "commands:continual"},
)
