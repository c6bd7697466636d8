"""`posttrain study unlearning-paths`. Help imports neither torch nor trl."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.commands.options import Overrides, Recipe
from posttrain.console import console


def unlearning_paths(
    recipe: Recipe,
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, e.g. 0,1,2; default the recipe's trainer.seed.")] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train and measure nothing; report on what is there.")
    ] = False,
    suite: Annotated[bool, typer.Option(help="Measure every model with the unlearning suite, too.")] = True,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Difference to the retrained model that counts as alike: nats, shares.")
    ] = 0.1,
) -> None:
    """One forget set at every place of the training, unlearned alike: divergence, recency, relearning, claims."""
    from posttrain.methods.unlearning_paths.page import page
    from posttrain.methods.unlearning_paths.study import study_unlearning_paths
    from posttrain.reports.document import show
    from posttrain.reproduce.command import parse_seeds

    chosen = None if seeds is None else parse_seeds(seeds)
    study, path = study_unlearning_paths(
        recipe, overrides or [], seeds=chosen, train=not report_only, suite=suite, tolerance=tolerance
    )
    show(page(study), console(), titles=("Result", "Like retrained"))
    typer.echo(f"report: {path.with_name('REPORT.md')}, and the same as one page: {path}")
