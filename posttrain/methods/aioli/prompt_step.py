"""`method.prompt_controller` of a recipe: the shares of a policy run's prompts follow its success on held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.evaluation.results import prompt_accuracies
from posttrain.methods.aioli.building import NEEDS_VALIDATION
from posttrain.methods.aioli.prompts import PromptController, PromptSettings
from posttrain.seam.groups.log import MixtureLog, group_column
from posttrain.seam.groups.sampler import prompt_groups, prompt_shares
from posttrain.seam.groups.validation import validation_groups
from posttrain.training.evaluator import recipe_evaluator

WHOLE = {"num_prompts": None, "time_budget_seconds": None}


def settings_of(config: Any) -> dict[str, Any] | None:
    """The settings as a recipe gives them; None where nothing changes the shares."""
    found = config.method.fields.get("prompt_controller")
    return None if found is None else dict(found)


def attach_prompt_controller(config: Any, trainer: Any, validation: Any) -> None:
    """Let the controller of a recipe change the shares of a trainer's prompts.

    Args:
        config: blocks without stages. trainer: of a policy method, before `train()`.
        validation: rows of `data.validation`, or None.

    Raises:
        PosttrainError: as `findings` tells it.
    """
    settings = PromptSettings.read(settings_of(config) or {})
    accuracies = None
    if settings.controller in NEEDS_VALIDATION:
        accuracies = held_out_accuracies(config, trainer, validation)
    PromptController(trainer, settings, accuracies=accuracies)


def held_out_accuracies(config: Any, trainer: Any, validation: Any) -> Callable[[Any], list[float]]:
    """model -> share of solved held-out prompts of each group of the trainer, the same on every rank.

    Every row counts each time, judged and sampled as the `eval` block says, by seeds that stay: two measurements
    differ by the weights alone.
    """
    log = trainer.group_log
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


def findings(config: Any, args: Any, train: Any, validation: Any) -> Iterator[PosttrainError]:
    """What can be known to be wrong before the run.

    Args:
        config: blocks without stages. args: its `PolicyConfig`. train, validation: rows; validation may be None.
    """
    log = MixtureLog.of(train, group_column(train, args.prompt_groups))
    try:
        if args.prompt_controller is None:
            prompt_shares(prompt_groups(log, args), args)
            return
        settings = PromptSettings.read(settings_of(config) or {})
        settings.build(log, prompts_per_batch=args.generation_batch_size // args.num_generations)
        if settings.controller in NEEDS_VALIDATION:
            validation_groups(validation, names=log.names, column=log.column)
        elif validation is not None:
            what = f"the controller {settings.controller} reads no held-out prompts"
            yield ConfigError(what, where="data.validation", fix="Remove the block")
    except PosttrainError as error:
        yield error
