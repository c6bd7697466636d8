"""Runs of one recipe with proportions that stay: trained where they are not finished, and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from posttrain.config.loader import load
from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.config import AioliConfig
from posttrain.methods.aioli.readers import READ_BY
from posttrain.methods.aioli.stage_step import StaticRun, read_run
from posttrain.run import run
from posttrain.training.resuming import is_finished

SWEEP = "sweep"
EQUAL = "equal"


@dataclass(frozen=True)
class Sweep:
    """Runs of one recipe that differ in their proportions alone."""

    groups: tuple[str, ...]
    runs: tuple[StaticRun, ...]

    @cached_property
    def proportions(self) -> np.ndarray:
        """(n, m)."""
        return np.array([run.proportions for run in self.runs])

    @cached_property
    def losses(self) -> np.ndarray:
        """(n, m) at the end."""
        return np.array([run.end for run in self.runs])

    @property
    def best(self) -> StaticRun:
        """The run with the least mean loss; the first of equal ones."""
        return min(self.runs, key=lambda run: run.mean_loss)


class MixRecipe:
    """A recipe whose groups are to be mixed, and the folder that everything found about it goes to.

    Args:
        recipe: of the method aioli, without stages, with `data.validation`. Its controller does not matter.
        overrides: as for training. train: false only reads what is finished.

    Raises:
        ConfigError: another kind of recipe.
    """

    def __init__(self, recipe: str | Path, overrides: Sequence[str] = (), *, train: bool = True):
        self.recipe, self.overrides, self.train = recipe, list(overrides), train
        self.config = load(recipe, self.overrides)
        self.root = Path(str(self.config.trainer.output_dir))
        for wrong, what, fix in (
            (self.config.stages is not None, "a recipe of one run is needed", "Take the stages out"),
            (self.config.method.name != "aioli", "only the method aioli mixes groups", "Set method.name: aioli"),
            (
                self.config.data.validation is None,
                "a run is judged by the groups' validation losses",
                "Write data.validation",
            ),
        ):
            if wrong:
                raise ConfigError(what, where=str(recipe), fix=fix)

    def static(self, name: str, proportions: Sequence[float] | None, *, changes: Sequence[str] = ()) -> StaticRun:
        """The run of that name below the folder; trained first if it is not finished.

        Args:
            name: a path below the folder. proportions: None = equal ones. changes: further overrides.

        Raises:
            DataError: it is not finished, and nothing is to be trained; or it was made with other proportions.
            ResumeError: it was made with other settings.
        """
        folder = self.root / name
        fixed = [*self.overrides, *_fixed(proportions), f"trainer.output_dir={folder.as_posix()}", *changes]
        if self.train:
            run(self.recipe, fixed)
        else:
            is_finished(folder, load(self.recipe, fixed), parent=None, reference=None)
        groups, losses, found = read_run(folder)
        if proportions is not None and not np.allclose(found, proportions, atol=1e-9):
            what = "this run has other proportions; another sweep went before it"
            raise DataError(what, where=str(folder), fix="Choose another trainer.output_dir")
        return StaticRun(name, folder, tuple(found), tuple(losses[0]), tuple(losses[-1]))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups in the order of proportions, as the run with equal ones knows them."""
        name = f"{SWEEP}/{EQUAL}"
        self.static(name, None)
        return tuple(read_run(self.root / name)[0])

    def corners(self) -> list[StaticRun]:
        """A run on each group alone, in the order of `groups`."""
        m = len(self.groups)
        return [self.static(f"{SWEEP}/only_{group}", np.eye(m)[group].tolist()) for group in range(m)]

    def sweep(self, *, draws: int, seed: int, corners: bool = True) -> Sweep:
        """Equal proportions, each group alone, and random draws; a sweep of more draws contains one of fewer.

        Args:
            draws: mixtures drawn uniformly from the simplex. seed: of them. corners: with each group alone.

        Returns:
            The finished runs.
        """
        found = [self.static(f"{SWEEP}/{EQUAL}", None)]
        m = len(self.groups)
        found += self.corners() if corners else []
        for name, proportions in drawn(m, draws=draws, seed=seed):
            found.append(self.static(f"{SWEEP}/{name}", proportions))
        return Sweep(self.groups, tuple(found))


def _fixed(proportions: Sequence[float] | None) -> Iterator[str]:
    """Overrides that put proportions in the place of the recipe's controller and of what that one reads."""
    for field in fields(AioliConfig):
        if field.name in READ_BY:
            yield f"method.{field.name}={json.dumps(field.default)}"
    yield f"method.controller={'stratified' if proportions is None else 'static'}"
    if proportions is not None:
        yield f"method.proportions={json.dumps([float(value) for value in proportions])}"


def drawn(num_groups: int, *, draws: int, seed: int) -> Iterator[tuple[str, list[float]]]:
    """(name, proportions) of random mixtures; each follows from seed and place alone."""
    for place in range(draws):
        mixture = np.random.default_rng([seed, place]).dirichlet(np.ones(num_groups))
        yield f"draw_{seed}_{place:02d}", (mixture / mixture.sum()).tolist()
