"""The filter of a stage's training rows by rollouts of the model that it starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.block import Block, Count, Seed


class RifBlock(Block):
    """Keep the training rows that the model a stage starts from can solve; see `posttrain.methods.rft_cpt.choose`."""

    num_rollouts: Annotated[int, Field(ge=2)] = Field(default=8, description="completions of each prompt")
    temperature: Annotated[float, Field(gt=0)] = Field(default=1.0, description="of the sampling", allow_inf_nan=False)
    max_new_tokens: Count | None = Field(default=None, description="null = that of the evaluation")
    min_correct: Annotated[int, Field(ge=0)] = Field(default=1, description="fewest right completions of a kept row")
    max_correct: Count | None = Field(default=None, description="most right completions of a kept row; null = all")
    max_examples: Count | None = Field(default=None, description="no more rows than this; null = all that are kept")
    choose: Literal["solvable", "unsolvable", "random"] = Field(
        default="solvable",
        description="solvable keeps the rows; unsolvable and random keep as many rows of the others, or of all",
    )
    batch_size: Count = Field(default=64, description="completions generated at once")
    seed: Seed = Field(default=42, description="of the sampling and of every random choice of rows")
