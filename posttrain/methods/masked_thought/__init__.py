"""Masked thought: supervised fine-tuning in which part of the demonstration's INPUT tokens are hidden."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="supervised",
    summary="supervised fine-tuning with part of the demonstration's input tokens hidden",
    paper=Paper(
        "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning "
        "Learning of Language Models",
        "2403.02178",
        2024,
        author="Chen",
    ),
    config="trainer:MaskedThoughtConfig",
    trainer="trainer:MaskedThoughtTrainer",
    supports=ENGINES | {"packing", "peft", "resume"},
)
