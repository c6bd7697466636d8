"""Settings of supervised training whose rows are drawn group by group."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.errors import ConfigError
from posttrain.seam.arguments import option
from posttrain.seam.supervised.trainer import SupervisedConfig


@dataclass
class GroupedConfig(SupervisedConfig):
    """Which groups there are, how their losses are measured, and how soon a change of their shares is in force."""

    group_column: str = option(
        "group", help="Column that tells a row's group. Of a mixture the groups are its sources, whatever this says."
    )
    groups: list[str] | None = option(None, help="Groups in the order of proportions. None = sorted by name.")
    mixing_eval_examples: int | None = option(
        64, help="Validation rows of each group, the same ones all through the run. None = all.", ge=1
    )
    mixing_test_examples: int = option(
        0,
        help="Further validation rows of each group that no decision sees, scored once, at the end.",
        ge=0,
    )
    mixing_seed: int | None = option(None, help="Seed of orders and sequences. None = trainer.seed.", ge=0)
    proportions_lag: int = option(
        1,
        help="Optimizer steps between a decision and the first step it reaches; more where loader workers read ahead.",
        ge=1,
    )
    # trl 1.16: None, which follows `packing`; a validation loss is a mean over sequences.
    eval_packing: bool | None = option(False, help="Pack validation rows; must be false here.", block="trainer")

    def __post_init__(self) -> None:
        if self.eval_packing:
            raise ConfigError(
                "a validation loss is a mean over sequences, which packed rows hold several of",
                where="trainer.eval_packing",
                got=True,
                fix="Set it to false",
            )
        super().__post_init__()

    @property
    def sampling_seed(self) -> int:
        """Seed of every random order of the sampling."""
        return self.seed if self.mixing_seed is None else self.mixing_seed
