"""`posttrain filter` and `posttrain study continual`. Help imports neither torch nor trl."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from posttrain.commands.options import Model, Overrides, Recipe, ReportOnly
from posttrain.console import console


def filter_rows(
    model: Model,
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option(help="Whose training rows, verifier and device.", show_default=False)] = ...,  # type: ignore[assignment]
    stage: Annotated[str | None, typer.Option(help="Stage of the recipe; default the last.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder; default runs/filter/<model>-<recipe>.")] = None,
    num_rollouts: Annotated[int | None, typer.Option(min=2, help="Completions of each prompt, default 8.")] = None,
    min_correct: Annotated[int | None, typer.Option(min=0, help="Fewest right ones, default 1.")] = None,
    max_correct: Annotated[int | None, typer.Option(min=1, help="Most right ones, default all.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="No more rows than this.")] = None,
    choose: Annotated[str | None, typer.Option(help="solvable (default), unsolvable or random.")] = None,
) -> None:
    """Keep the training rows that a model can solve now and then; rollouts are kept and not made twice."""
    from posttrain.methods.rft_cpt.filter import filter_model

    given: dict[str, Any] = {"num_rollouts": num_rollouts, "min_correct": min_correct, "max_correct": max_correct}
    given |= {"max_examples": max_examples, "choose": choose}
    options = {name: value for name, value in given.items() if value is not None}
    if choose not in (None, "solvable", "unsolvable", "random"):
        raise typer.BadParameter("--choose is solvable, unsolvable or random")
    filter_model(model, recipe=recipe, overrides=overrides or [], stage=stage, output=output, options=options)


def continual(
    recipe: Recipe,
    overrides: Overrides = None,
    known: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy from which on the base model could already do a task.")
    ] = 0.5,
    report_only: ReportOnly = False,
) -> None:
    """Tasks one after another: score matrix as table and heat map, forgetting and transfer, cost."""
    from rich.table import Table

    from posttrain.methods.rft_cpt.study import study_continual

    reports, path = study_continual(recipe, overrides or [], train=not report_only, known=known)
    table = Table("metric", *[report.name for report in reports])
    for name in reports[0].metrics:
        values = [report.metrics[name].value for report in reports]
        table.add_row(name.replace("_", " "), *["–" if v is None else f"{100 * v:+.1f}" for v in values])
    console().print(table)
    typer.echo(f"report: {path}")
