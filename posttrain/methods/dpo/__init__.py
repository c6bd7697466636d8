"""Direct preference optimization (arXiv 2305.18290): learns which of two answers to a prompt is better."""

from __future__ import annotations

from posttrain.registry import ENGINES, Curve, Method, Paper

METHOD = Method(
    kind="supervised",
    summary="preferences between two answers to a prompt, as DPO, IPO, robust DPO, hinge or SimPO",
    paper=Paper(
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "2305.18290",
        2023,
        "Rafailov",
    ),
    config="trainer:DPOConfig",
    trainer="trainer:DPOTrainer",
    supports=ENGINES | {"peft", "resume"},
    curves=(
        Curve("rewards/accuracies", "preferred", "Pairs whose better answer has the higher reward", "share (0 to 1)"),
        Curve("rewards/margins", "margin", "Reward of the better answer minus the other's", "nats", (None, None)),
    ),
)
