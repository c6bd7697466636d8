"""`rollout.prompt_shares` of a recipe: the shares of a policy run's prompts follow its success on held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from posttrain.config.run_config import RunConfig
from posttrain.config.steps import StageStep
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.evaluation.results import prompt_accuracies
from posttrain.methods.aioli.building import NEEDS_VALIDATION
from posttrain.methods.aioli.prompts import PromptController, PromptSettings
from posttrain.seam.groups.log import GroupStats, group_column
from posttrain.seam.groups.validation import validation_groups
from posttrain.training.evaluator import recipe_evaluator

WHOLE = {"num_prompts": None, "time_budget_seconds": None}


class PromptShares(StageStep):
    """`rollout.prompt_shares: {name: aioli, ...}`: attaches a `PromptController` with these `PromptSettings`."""

    @classmethod
    def read(cls, written: Mapping[str, Any], *, where: str) -> PromptSettings:
        return PromptSettings.read(written, where=where)

    def findings(self, run: RunConfig, args: Any, rows: Mapping[str, Any]) -> Iterator[PosttrainError]:
        """Groups, rounds and held-out prompts that the controller cannot work with."""
        settings: PromptSettings = self.settings
        log = GroupStats.of(rows["train"], group_column(rows["train"], args.prompt_groups))
        validation = rows.get("validation")
        try:
            settings.build(log, prompts_per_batch=args.generation_batch_size // args.num_generations)
            if settings.controller in NEEDS_VALIDATION:
                validation_groups(validation, names=log.names, column=log.column)
            elif validation is not None:
                what = f"the controller {settings.controller} reads no held-out prompts"
                yield ConfigError(what, where="data.validation", fix="Remove the block")
        except PosttrainError as error:
            yield error

    def attach(self, run: RunConfig, trainer: Any, data: Mapping[str, Any]) -> None:
        accuracies = None
        if self.settings.controller in NEEDS_VALIDATION:
            accuracies = held_out_accuracies(run, trainer, data.get("validation"))
        PromptController(trainer, self.settings, accuracies=accuracies)


def held_out_accuracies(config: Any, trainer: Any, validation: Any) -> Callable[[Any], list[float]]:
    """model -> share of solved held-out prompts of each group of the trainer, the same on every rank.

    Every row counts each time, judged and sampled as the `eval` block says, by seeds that stay: two measurements
    differ by the weights alone.
    """
    log = trainer.group_stats
    numbers = validation_groups(validation, names=log.names, column=log.column)
    call, _ = recipe_evaluator(
        config, tokenizer=trainer.processing_class, rows=validation, accelerator=trainer.accelerator, changes=WHOLE
    )

    def accuracies(model: Any) -> list[float]:
        by_row = prompt_accuracies(call(model).samples)
        found = []
        for number, name in enumerate(log.names):
            own = [value for row, value in by_row.items() if numbers[row] == number]
            if not own:
                raise DataError("no held-out prompt of a group could be judged", where=f"group {name!r}")
            found.append(float(np.mean(own)))
        return found

    return accuracies
