"""Aioli (arXiv 2411.05735) and other online methods that decide the proportions of groups while they train."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="supervised",
    summary="supervised training in groups whose proportions a controller measures and changes",
    paper=Paper(
        "Aioli: A Unified Optimization Framework for Language Model Data Mixing",
        "2411.05735",
        2024,
        author="Chen",
    ),
    config="config:AioliConfig",
    trainer="trainer:AioliTrainer",
    supports=ENGINES | {"packing", "peft", "resume"},
    inputs=frozenset({"streams"}),
    step="stage_step:StreamStep",
    steps={"mix": "stage_step:MixStep"},
    slots={"rollout.prompt_shares": "prompt_step:PromptShares"},
    plans={"mixing": "plan:mixing_stages"},
    verbs={"mix": "commands:mix_app"},
)
