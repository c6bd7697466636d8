"""Evaluation in the course of training, every so many optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.evaluation.results import EvalResult


class PeriodicEvaluation(TrainerCallback):
    """Evaluates the model after every `every_steps` optimizer steps, except after the last.

    The last step is left to the caller, who evaluates the finished model anyway. Training is not affected: see
    `evaluation.generate.evaluate`.

    Args:
        every_steps: optimizer steps between two evaluations.
        evaluate: called on every rank with the model; usually a partial of `evaluate`.
        record: called on the main process with the step and the result; usually writes to the run folder.
    """

    def __init__(
        self, every_steps: int, *, evaluate: Callable[[Any], EvalResult], record: Callable[[int, EvalResult], Any]
    ):
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self.every_steps = every_steps
        self.evaluate = evaluate
        self.record = record

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Called after each optimizer step on every rank."""
        if state.global_step % self.every_steps or state.global_step >= state.max_steps:
            return
        result = self.evaluate(model)
        if state.is_world_process_zero:
            self.record(state.global_step, result)
