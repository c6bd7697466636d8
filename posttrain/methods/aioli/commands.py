"""The verbs of `posttrain mix`. Each is a thin call; help imports neither torch nor trl."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from posttrain.commands.options import Overrides, Recipe, ReportOnly

mix_app = typer.Typer(
    help="Proportions of a recipe's groups from whole runs: sweeps, laws fitted on them, skill graphs.",
    no_args_is_help=True,
)

Draws = Annotated[int, typer.Option(min=0, help="Random mixtures beside equal proportions and each group alone.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random mixtures.")]
Corners = Annotated[bool, typer.Option(help="With each group alone among the runs, or without.")]
Final = Annotated[bool, typer.Option("--final", help="Train a run with the proposed proportions.")]


@mix_app.command("grid")
def grid(
    recipe: Recipe,
    overrides: Overrides = None,
    draws: Draws = 6,
    corners: Corners = True,
    seed: Seed = 0,
    report_only: ReportOnly = False,
) -> None:
    """Train the recipe with static mixtures, and report the best; finished runs are not repeated."""
    from posttrain.methods.aioli import verbs

    _show(verbs.grid(_recipe(recipe, overrides, report_only), draws=draws, seed=seed, corners=corners))


@mix_app.command("dml")
def dml(
    recipe: Recipe,
    overrides: Overrides = None,
    draws: Draws = 6,
    corners: Corners = True,
    seed: Seed = 0,
    final: Final = False,
    report_only: ReportOnly = False,
) -> None:
    """Fit a log-linear law on the sweep, and propose the proportions of its least mean loss."""
    from posttrain.methods.aioli import verbs

    chosen: dict[str, Any] = {"corners": corners, "final": final}
    _show(verbs.dml(_recipe(recipe, overrides, report_only), draws=draws, seed=seed, **chosen))


@mix_app.command("regmix")
def regmix(
    recipe: Recipe,
    overrides: Overrides = None,
    draws: Draws = 6,
    corners: Corners = True,
    seed: Seed = 0,
    simulated: Annotated[int, typer.Option(min=1, help="Mixtures that are simulated.")] = 100_000,
    best: Annotated[int, typer.Option(min=1, help="Of these, the best, which are averaged.")] = 100,
    final: Final = False,
    report_only: ReportOnly = False,
) -> None:
    """Fit a linear law on the sweep, and propose the mean of the best simulated proportions."""
    from posttrain.methods.aioli import verbs

    if best > simulated:
        raise typer.BadParameter("--best is at most --simulated")
    chosen: dict[str, Any] = {"corners": corners, "simulated": simulated, "best": best, "final": final}
    _show(verbs.regmix(_recipe(recipe, overrides, report_only), draws=draws, seed=seed, **chosen))


@mix_app.command("skill-graph")
def skill_graph(recipe: Recipe, overrides: Overrides = None, report_only: ReportOnly = False) -> None:
    """Train on each group alone, and write what that does for the others, for method.skill_graph."""
    from posttrain.methods.aioli import verbs

    _show(verbs.skill_graph(_recipe(recipe, overrides, report_only)))


@mix_app.command("fidelity")
def fidelity(
    recipe: Recipe,
    overrides: Overrides = None,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="Round of the run; default the last with a checkpoint.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a branch; default those of a round.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Branches of each group.")] = 1,
    report_only: ReportOnly = False,
) -> None:
    """Compare the matrix that a finished run measured with one from short runs that branch off it."""
    from posttrain.methods.aioli.fidelity import fidelity as compare

    _show(compare(_recipe(recipe, overrides, report_only), number=number, steps=steps, repeats=repeats))


def _recipe(recipe: str, overrides: list[str] | None, report_only: bool) -> Any:
    from posttrain.console import quiet_libraries
    from posttrain.methods.aioli.sweep import MixRecipe

    quiet_libraries()
    return MixRecipe(recipe, overrides or [], train=not report_only)


def _show(found: Any) -> None:
    from rich.table import Table

    from posttrain.console import console

    table = Table(*found.header)
    for row in found.rows:
        table.add_row(*row)
    console().print(table)
    for line in found.lines:
        typer.echo(line)
    if found.proportions is not None:
        shares = zip(found.groups, found.proportions, strict=True)
        typer.echo(f"proportions: {', '.join(f'{name} {value:.4f}' for name, value in shares)}")
    typer.echo(f"report: {found.page}")
