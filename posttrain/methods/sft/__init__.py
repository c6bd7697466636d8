"""Supervised fine-tuning on demonstrations: the base that the supervised methods stand on."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="supervised",
    summary="supervised fine-tuning on demonstrations",
    paper=Paper(
        "Training language models to follow instructions with human feedback",
        "2203.02155",
        2022,
        author="Ouyang",
    ),
    config="posttrain.seam.supervised.trainer:SupervisedConfig",
    trainer="posttrain.seam.supervised.trainer:SupervisedTrainer",
    supports=ENGINES | {"peft", "resume"},
)
