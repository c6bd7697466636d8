"""One entry of rollout.rewards: a name and how its values are used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.config.block import Block, Name


def named(value: Any) -> Any:
    """An entry that is only a name, as one."""
    return {"name": value} if isinstance(value, str) else value


class RewardEntry(Block):
    """One reward function."""

    name: Name = Field(description="name of a packaged reward, or file.py:function beside the recipe")
    weight: float = Field(default=1.0, description="factor in the sum of rewards", allow_inf_nan=False)
    strict: bool | None = Field(
        default=None, description="math only: false = math-verify's own verdict; null = true, see docs/rewards.md"
    )
    on_timeout: Literal["wrong", "fail"] | None = Field(
        default=None,
        description="what a completion is that exceeds reward_timeout_seconds: scored 0 and counted, or a failed "
        "row; null = wrong for math, fail for others",
    )

    def options(self) -> dict[str, Any]:
        """What the reward itself is to know, as keywords of a `RewardScorer`."""
        options = {} if self.strict is None else {"strict": self.strict}
        return {"options": options, "on_timeout": self.on_timeout}

    @model_validator(mode="after")
    def _strict_is_of_math(self) -> RewardEntry:
        if self.strict is not None and self.name != "math":
            raise ValueError(f"strict is a setting of the reward math, not of {self.name!r}")
        return self


def distinct(value: list[RewardEntry]) -> list[RewardEntry]:
    """The entries, none listed twice; ValueError otherwise."""
    names = [entry.name for entry in value]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"reward {repeated[0]!r} is listed twice")
    return value
