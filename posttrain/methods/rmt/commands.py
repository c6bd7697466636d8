"""`posttrain score-tokens`. Help imports neither torch nor trl."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.commands.options import Overrides, Recipe
from posttrain.console import console, quiet_libraries


def score_tokens(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the recipe; default the first that reads text.")] = None,
    questions: Annotated[
        str | None, typer.Option(help="Folder for questions about the text, reasoning.jsonl and next_token.jsonl.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="key=value of data.train that is other for the questions' documents.")
    ] = None,
    per_tier: Annotated[int, typer.Option(min=1, help="Questions of each tier.")] = 100,
    nested: Annotated[
        bool, typer.Option("--nested", help="Questions above each threshold instead of between two.")
    ] = False,
) -> None:
    """Score the text of a recipe of next-token reasoning ahead of training; a stopped scoring goes on."""
    from posttrain.methods.rmt.score_tokens import score_tokens as score

    quiet_libraries()
    score(
        recipe,
        overrides or [],
        stage=stage,
        questions=questions,
        held_out=held_out,
        per_tier=per_tier,
        nested=nested,
        console=console(),
    )
