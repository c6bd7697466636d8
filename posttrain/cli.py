"""The command line: one function a verb. Each verb is a thin call; help imports neither torch nor trl."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from posttrain import __version__, registry
from posttrain.commands.options import Model, Overrides, Recipe
from posttrain.console import console, exit_status, is_main_process, quiet_libraries

app = typer.Typer(
    name="posttrain",
    help="Post-training methods for language models: one YAML file is one run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_GROUPS = {"study": "Train the stages of a recipe and report on them together."}

Suite = Annotated[
    str | None,
    typer.Option(
        help="lm-eval tasks by name, a,b,c, or a task file or folder; extra: eval. With --recipe: "
        + ", ".join(registry.declared("suites"))
        + "."
    ),
]
Against = Annotated[
    str | None, typer.Option(help="Folder of an earlier suite result to compare with, as before unlearning.")
]
Reference = Annotated[
    str | None,
    typer.Option(help="Folder of the suite's result for a reference model, as one that never saw what is forgotten."),
]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, train, evaluate, save; several processes: accelerate launch -m posttrain.run RECIPE."""
    from posttrain.run import run

    run(recipe, overrides or [])


@app.command()
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    show_rows: Annotated[int, typer.Option(min=0, help="Print this many rows, trained tokens marked.")] = 0,
    world_size: Annotated[int, typer.Option(min=1, help="Number of processes the run will have.")] = 1,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Read every row of streams, not the first ones.")
    ] = False,
) -> None:
    """Find every mistake in a recipe, its data and its rewards before any weight is read."""
    from posttrain.config.loader import load
    from posttrain.preflight.check import check as check_recipe

    quiet_libraries()
    said = console().print if all_rows else None
    config = load(recipe, overrides or [])
    report = check_recipe(config, world_size=world_size, show_rows=show_rows, all_rows=said)
    report.show(console())
    if report.errors:
        raise typer.Exit(2)


@app.command("eval")
def evaluate(
    model: Model,
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="Evaluate as this recipe does in training.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the recipe; default the last.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the result; default in the run, or runs/eval.")] = None,
    suite: Suite = None,
    include: Annotated[
        str | None, typer.Option(help="Folder of further lm-eval tasks; Python code in it is run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First documents of each task of the suite.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the suite, default 0; a recipe has eval.seed=N.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of the suite, default 8; a recipe has eval.batch_size=N.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask the suite's questions as chat messages.")
    ] = False,
    against: Against = None,
    reference: Reference = None,
) -> None:
    """Evaluate a saved model: --recipe as in training, pass@k; --suite on lm-eval tasks; a paper's suite: both."""
    common: dict[str, Any] = {"overrides": overrides or [], "revision": revision, "output": output}
    of_suite = {"include": include, "limit": limit, "seed": seed, "batch_size": batch_size}
    given: dict[str, Any] = {name: value for name, value in of_suite.items() if value is not None}
    given |= {"apply_chat_template": True} if apply_chat_template else {}
    own = registry.declared("suites")
    if suite in own:
        _evaluate_by_recipe(suite, model, recipe, given, stage=stage, against=against, reference=reference, **common)
        return
    if reference is not None:
        raise typer.BadParameter(f"--reference goes with --suite {' or '.join(own)}")
    if (recipe is None) == (suite is None):
        raise typer.BadParameter("give either --recipe or --suite")
    if recipe is not None:
        if given or against is not None:
            raise typer.BadParameter(f"--{[*given, 'against'][0].replace('_', '-')} goes with --suite")
        from posttrain.commands.evaluate import evaluate_model

        evaluate_model(model, recipe=recipe, stage=stage, **common)
        return
    if stage is not None:
        raise typer.BadParameter("--stage goes with --recipe")
    from posttrain.commands.suite import SuiteOptions, evaluate_suite

    evaluate_suite(model, options=SuiteOptions(tasks=str(suite), **given), against=against, **common)


def _evaluate_by_recipe(suite: str, model: str, recipe: str | None, given: dict[str, Any], **options: Any) -> None:
    """A suite that a paper declares; it measures rows of a recipe."""
    unread = [name for name in given if name != "batch_size"]
    if recipe is None:
        raise typer.BadParameter(f"--suite {suite} needs --recipe, whose rows are measured")
    if unread:
        raise typer.BadParameter(f"--{unread[0].replace('_', '-')} does not go with --suite {suite}")
    method, path = registry.declared("suites")[suite]
    method.load(path)(model, recipe=recipe, **given, **options)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folder of a run, of stages, or of runs; NAME=FOLDER names it.", metavar="RUN...", show_default=False
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder for REPORT.md, report.html and the plots.")] = "comparison",
    metric: Annotated[
        str, typer.Option(help="Number of the evaluation: accuracy, pass@4, mean_length, per_group.NAME.accuracy.")
    ] = "accuracy",
    baseline: Annotated[
        str | None, typer.Option(help="Variant the others are tested against. Default: the first.", show_default=False)
    ] = None,
    group: Annotated[
        bool, typer.Option(help="Put runs together that differ only in their seeds, or show each by itself.")
    ] = True,
) -> None:
    """Set runs beside each other: results over seeds, a paired test, curves, cost; one page to pass on."""
    from posttrain.reports.comparison import Comparison
    from posttrain.reports.comparison_report import describe, write_document
    from posttrain.reports.document import show
    from posttrain.reports.measure import Measure
    from posttrain.reports.variants import find_runs, sort_into_variants

    variants = sort_into_variants(find_runs(runs), group=group)
    for variant in variants:
        typer.echo(f"{variant.name}: {', '.join(f'{run.folder.path} ({variant.label(run)})' for run in variant.runs)}")
    document = describe(Comparison(tuple(variants), Measure(metric), baseline))
    page = write_document(document, output)
    show(document, console(), titles=("Warnings", "Result", "Test", "Cost"))
    typer.echo(f"{page}\n{page.with_name('REPORT.md')}")


@app.command()
def methods() -> None:
    """List the methods, their papers and where they are supported."""
    from rich.table import Table

    from posttrain.registry import METHODS

    table = Table("method", "kind", "what it does", "paper", "supports")
    for entry in METHODS.values():
        paper = f"{entry.paper.title} ({entry.paper.year}), arXiv {entry.paper.arxiv}"
        table.add_row(entry.key, entry.kind, entry.summary, paper, " ".join(sorted(entry.supports)))
    console().print(table)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe for --gradients; default sft and grpo.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Train a few rows under each engine and compare the updates; minutes.")
    ] = False,
    config_file: Annotated[
        str | None, typer.Option(help="Accelerate config file that --gradients compares; default several engines.")
    ] = None,
) -> None:
    """Compare the installed versions with what the seam to TRL assumes; exit code 1 where they differ."""
    from rich.table import Table

    from posttrain.seam.contract import doctor as examine

    if not gradients and (recipe is not None or config_file is not None):
        raise typer.BadParameter("a recipe and --config-file go with --gradients")
    rows = examine()
    table = Table("what", "expected", "found", "", "note")
    for row in rows:
        table.add_row(row.name, row.expected, row.found, "ok" if row.ok else "differs", row.note)
    is_well = all(row.ok for row in rows)
    if not gradients or not is_well:
        console().print(table)
        _print_walls()
    if gradients and is_well:
        from posttrain.certificate.command import check_gradients

        is_well = check_gradients(recipe, overrides or [], config_file=config_file, console=console())
    if not is_well:
        raise typer.Exit(1)


def _print_walls() -> None:
    """What a reward could reach on this machine, as a worker found by trying."""
    import os

    from rich.table import Table

    if os.name != "posix":
        return
    from posttrain.rewards.pool import try_walls

    table = Table("a reward's way to", "tried just now")
    found = try_walls() or {"everything around it": "open: this system has no such walls"}
    for name, state in found.items():
        table.add_row(name, state)
    console().print(table)


@app.command()
def reproduce(
    key: Annotated[str | None, typer.Argument(help="Method, as of `posttrain methods`.", show_default=False)] = None,
    overrides: Overrides = None,
    study: Annotated[str | None, typer.Option(help="Study, if there are several: claims_<study>.yaml.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of those of claims.yaml, e.g. 0,1.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Seeds trained at once; default one a CPU core.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder; default runs/reproduce/<key>/<study>.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Bring the pages of results and methods up to date, and stop.")
    ] = False,
) -> None:
    """Test a paper's claim at small scale against its baselines, or continue; a result goes to RESULTS.json."""
    from posttrain.reproduce import command

    if ledger:
        command.refresh_ledger(console())
        return
    if key is None:
        raise typer.BadParameter("name a method, e.g. posttrain reproduce hpt")
    done = command.reproduce(
        key,
        overrides or [],
        study=study,
        seeds=None if seeds is None else command.parse_seeds(seeds),
        jobs=jobs,
        output=output,
        dry_run=dry_run,
        console=console(),
    )
    if not done:
        raise typer.Exit(1)


@app.command()
def serve(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the recipe; default the last with rollouts.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on, loopback or private.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token_file: Annotated[
        str | None, typer.Option(help="File of the token, made if missing; default OUTPUT_DIR/_engine.token.")
    ] = None,
) -> None:
    """Serve a recipe's model with vLLM, for runs with rollout.vllm_server_base_url; every route needs a token."""
    from posttrain.commands.serve import serve as serve_recipe

    serve_recipe(recipe, overrides or [], stage=stage, host=host, port=port, token_file=token_file)


def _add_verbs_of_papers() -> None:
    """Verbs that rooms declare, "verb" or "group verb"; what they need is imported once one is called."""
    groups: dict[str, typer.Typer] = {}
    for name, (method, path) in registry.declared("verbs").items():
        group, _, verb = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(help=_GROUPS[group], no_args_is_help=True)
            app.add_typer(groups[group], name=group)
        found, parent = method.load(path), groups.get(group, app)
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=verb)
        else:
            parent.command(verb)(found)


_add_verbs_of_papers()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"posttrain {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script, and of each process of `accelerate launch -m posttrain VERB ...`."""
    sys.exit(exit_status(_call))


def _call() -> int:
    # UsageError of click; typer 0.29 has a copy of its own, without a public name.
    wrong_command_line: Any = typer.BadParameter.__base__
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except wrong_command_line as error:
        if is_main_process():
            error.show()
        return int(error.exit_code)


if __name__ == "__main__":
    main()
