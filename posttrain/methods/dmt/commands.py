"""`posttrain study composition`. Help imports neither torch nor trl."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.commands.options import Overrides, Recipe, ReportOnly
from posttrain.console import console


def composition(
    recipe: Recipe,
    overrides: Overrides = None,
    amounts: Annotated[str, typer.Option(help="Parts of the sources' rows.")] = "1,1/4,1/16,1/64,1/256",
    replays: Annotated[
        str, typer.Option(help="Parts k of the specialised rows that stage 2 repeats.")
    ] = "0,1/256,1/64,1/16,1/4,1",
    model: Annotated[
        list[str] | None,
        typer.Option(help='A model, "NAME: key=value ..."; may come several times. Default: the recipe\'s.'),
    ] = None,
    questions: Annotated[str, typer.Option(help="Of amount, mixed, ratio, strategy.")] = "amount,mixed,ratio,strategy",
    report_only: ReportOnly = False,
) -> None:
    """Sources by amount, ratio and order, for each model: one table, one plot, and the k that no other beats."""
    from rich.table import Table

    from posttrain.methods.dmt.study import best_lines, parse_fractions, parse_models, study_composition, table_rows

    studies, path = study_composition(
        recipe,
        overrides or [],
        amounts=parse_fractions(amounts, option="--amounts"),
        replays=parse_fractions(replays, option="--replays"),
        models=parse_models(model or []),
        questions=[name.strip() for name in questions.split(",")],
        train=not report_only,
    )
    header, rows = table_rows(studies)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    for line in best_lines(studies):
        typer.echo(line)
    typer.echo(f"report: {path}")
