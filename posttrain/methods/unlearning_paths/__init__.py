"""Unlearning: losses on rows to forget, rows to retain, and the model before as the reference."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="supervised",
    summary="unlearning by gradient ascent, preferences or steering, and how the order of training shapes it",
    paper=Paper("On the Impossibility of Retrain Equivalence in Machine Unlearning", "2510.16629", 2025, author="Yu"),
    config="config:UnlearnConfig",
    trainer="trainer:UnlearnTrainer",
    supports=ENGINES | {"peft", "resume"},
    inputs=frozenset({"retain"}),
    plans={"unlearning_paths": "plan:path_stages"},
    outcome="outcome:path_numbers",
    measures="outcome:MEASURES",
    verbs={"study unlearning-paths": "commands:unlearning_paths"},
    suites={"unlearning": "suite:evaluate_unlearning"},
)
