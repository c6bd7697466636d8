"""What all verbs of the command line share: the recipe, its overrides, the model that is looked at."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Dotted overrides, e.g. trainer.learning_rate=1e-6.", metavar="[KEY=VALUE]...", show_default=False
    ),
]
Model = Annotated[
    str, typer.Argument(help="Model, run, checkpoint-N or adapter folder, or a Hub id.", show_default=False)
]
ReportOnly = Annotated[bool, typer.Option("--report-only", help="Train nothing; report on what is there.")]
