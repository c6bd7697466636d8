"""`posttrain eval`: the evaluation of a recipe on any saved model, by the code that evaluates in training.

Several processes: accelerate launch -m posttrain eval MODEL --recipe RECIPE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from posttrain.commands.eval_record import EvalRecord
from posttrain.config.loader import load_stage
from posttrain.console import is_main_process, quiet_libraries, say
from posttrain.data.sources import load_source
from posttrain.errors import ConfigError
from posttrain.evaluation.progress import EvaluationProgress
from posttrain.models.generation_settings import open_settings, told
from posttrain.seam.isolation import refuse_padded_prompts
from posttrain.training.evaluator import precision, recipe_evaluator
from posttrain.training.saved_models import find_model


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_model` found and where it wrote it."""

    result: Any  # EvalResult
    folder: Path
    notes: list[str]  # warnings, and the comparison with the run's own record


def evaluate_model(
    model: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    stage: str | None = None,
    output: str | Path | None = None,
) -> Evaluated:
    """Evaluate a saved model as a recipe would in training.

    Args:
        model: model, run, checkpoint or adapter folder, or Hub id.
        recipe: path of the YAML file; its data.eval, eval block, verifier, system prompt and template variables count.
        overrides: "block.key=value"; in a recipe with stages they reach the blocks of the stage.
        revision: branch, tag or commit of a Hub id.
        stage: of a recipe with stages; None = the last.
        output: folder of the result, see `default_output`.

    Returns:
        The result, the same on every rank; only the main process writes and prints.

    Raises:
        PosttrainError: anything a user can cause.
    """
    chain = load_stage(recipe, overrides, stage)
    name, config = chain[-1]
    if config.data.eval is None:
        where = config.where("data", "eval")
        raise ConfigError("the recipe names no rows to evaluate on", where=where, fix="Set data.eval")
    found = find_model(model, revision=revision, stage=name)
    quiet_libraries()
    accelerator = Accelerator(**precision(config))
    rows = load_source(config.data.eval, system_prompt=config.data.system_prompt)
    tokenizer = found.tokenizer(config.model)
    call, settings = recipe_evaluator(config, tokenizer=tokenizer, rows=rows, accelerator=accelerator)
    weights = found.load(config.model)
    refuse_padded_prompts(weights, settings)
    weights = weights if config.model.load_in_4bit else weights.to(accelerator.device)
    dtype = str(weights.dtype).removeprefix("torch.")
    record = EvalRecord(found, chain, settings, tokenizer, rows, accelerator, dtype)
    folder = record.claim(output)
    if not is_main_process():
        return Evaluated(call(weights), folder, [])
    notes = record.warnings()
    notes += filter(None, [told(open_settings(getattr(weights, "generation_config", None)), what="evaluations")])
    for note in notes:
        say(f"warning: {note}")
    say(f"evaluating {found.path} with {record.title}")
    with EvaluationProgress() as progress:
        result = call(weights, progress=progress)
    compared = record.comparison(result)
    report = record.write(folder, result, [*notes, *compared])
    say("\n".join([*compared, f"report: {report}"]))
    return Evaluated(result, folder, [*notes, *compared])
