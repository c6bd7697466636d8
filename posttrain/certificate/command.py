"""`posttrain doctor --gradients`: the short form of the battery on the user's machine, engine and versions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain import registry
from posttrain.certificate.battery import Result, counted, run_plan
from posttrain.certificate.launching import Recipe, lacking
from posttrain.certificate.own_config import group_of_file
from posttrain.certificate.plan import Cell, Group, Plan
from posttrain.certificate.recipes import stages_of
from posttrain.config.loader import load
from posttrain.errors import SupportError

# Those that take the two splits in which a lost micro-batch shows, on the engines in which most can go wrong.
GROUPS = (
    Group("ddp", "none", 2),
    Group("zero2", "optimizer", 2),
    Group("zero3", "both", 2),
    Group("fsdp2", "none", 2),
)
SHORT_SPLITS = ((2, 4), (8, 1))
# Without a recipe: supervised fine-tuning, then a policy method, both on packaged rows.
DEFAULT = """
model: {tiny: {architecture: llama, hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64, seed: 0}}
data:
  train: {task: arithmetic, size: 64, seed: 0, options: {digits: 2, split: train}}
  max_prompt_length: 64
stages:
  - {name: sft, method: {name: sft}, trainer: {max_steps: 8}}
  - name: grpo
    method: {name: grpo, preset: grpo, loss_aggregation: token_mean}
    rollout: {num_generations: 4, max_completion_length: 16, rewards: [exact]}
    trainer: {max_steps: 8}
"""


def check_gradients(
    recipe: str | None,
    overrides: Iterable[str] = (),
    *,
    config_file: str | None = None,
    console: Any,
) -> bool:
    """Compare the updates of a recipe's methods over engines, print one table, and say whether all are equal.

    Args:
        recipe: YAML file; each of its methods is taken, on a tiny copy of its model and its own rows.
            None = `DEFAULT`.
        overrides: of the recipe.
        config_file: the user's accelerate config file: it alone is compared. None = `GROUPS`.
        console: of rich.

    Raises:
        PosttrainError: the recipe or the config file has a mistake, or the machine lacks what the file asks for.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-gradients-") as place:
        folder = Path(place)
        if recipe is None:
            recipe = str(folder / "default.yaml")
            Path(recipe).write_text(DEFAULT)
        recipes = {key: Recipe(recipe, tuple(overrides), key) for key in stages_of(load(recipe, list(overrides)))}
        own = None if config_file is None else Path(config_file)
        groups = GROUPS if own is None else (group_of_file(own),)
        if own is not None and (what := lacking(groups[0])) is not None:
            raise SupportError(what, where=str(own))
        plan: Plan = {group: [Cell(key, split) for key in recipes for split in SHORT_SPLITS] for group in groups}
        results = run_plan(
            plan, recipes, folder, say=lambda text: console.print(text, markup=False, highlight=False), config=own
        )
    console.print(table(results))
    console.print(counted(results))
    bad = [result for result in results if result.outcome in ("DIFFERS", "FAILED")]
    return not bad


def table(results: Iterable[Result]) -> Any:
    """The results as one table, a line for each trainer and group."""
    shown = Table("engine", "offload", "processes", "method", "rows x micro-batches", "difference", "")
    for result in results:
        figure = "" if result.figure is None else f"{result.figure:.1e}"
        why = result.error or result.skipped or (f"in {result.tensor}" if result.outcome == "DIFFERS" else "")
        group = result.group
        shown.add_row(
            group.engine,
            group.offload,
            str(group.processes),
            result.cell.trainer,
            result.cell.shown,
            figure,
            f"{result.outcome}: {why}" if why else result.outcome,
        )
    return shown


def every_recipe(folder: Path) -> dict[str, Recipe]:
    """The smoke recipe of every trainer, as it stands below the repository's `recipes/`."""
    return {key: Recipe(str(folder / key / "smoke.yaml"), (), key) for key in registry.trained()}
