"""The verbs of `posttrain study`, and what all verbs share: the recipe, its overrides, the console.

Each verb is a thin call; help imports neither torch nor trl.
"""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.console import console

Recipe = Annotated[str, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Dotted overrides, e.g. trainer.learning_rate=1e-6.", metavar="[KEY=VALUE]...", show_default=False
    ),
]

study_app = typer.Typer(help="Train the stages of a recipe and report on them together.", no_args_is_help=True)


@study_app.command("continual")
def continual(
    recipe: Recipe,
    overrides: Overrides = None,
    known: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy from which on the base model could already do a task.")
    ] = 0.5,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report on what is there.")
    ] = False,
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


@study_app.command("composition")
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
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report on what is there.")
    ] = False,
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


@study_app.command("unlearning-paths")
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
