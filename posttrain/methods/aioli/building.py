"""From settings and groups to the controller that decides the proportions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.controllers import (
    AioliController,
    DoGEController,
    DoReMiController,
    MixingController,
    SkillItController,
    as_proportions,
)
from posttrain.methods.aioli.laws import solve_mixing_matrix
from posttrain.seam.groups.log import GroupStats, group_column
from posttrain.seam.groups.sampler import read_proportions, realised_shares
from posttrain.seam.groups.validation import validation_groups

# Controllers that cannot decide without validation losses or gradients.
NEEDS_VALIDATION = ("aioli", "skillit", "doge")


def grouped_rows(log: GroupStats | None, *, column: str, where: str = "method.group_column") -> GroupStats:
    """The groups of the training rows, at least two.

    Args:
        log: of the rows; None if they have no groups. column: that was looked for. where: field that names it.

    Raises:
        DataError: no groups, or a single one.
    """
    if log is None:
        raise DataError(
            "the training rows have no group",
            where=where,
            got=column,
            allowed="a column of the rows, or several sources in data.train.mixture",
            fix="Name the column, map it under data.train.columns, or write a mixture",
        )
    if len(log.names) < 2:
        raise DataError("one group has nothing to be mixed with", where=where, got=", ".join(log.names))
    return log


def check_groups(
    settings: Any, train: Any, validation: Any, *, world_size: int, settings_complete: bool = True
) -> None:
    """What can be known to be wrong from settings and rows alone.

    Args:
        settings: an `AioliConfig`. train, validation: rows. world_size: processes.
        settings_complete: False where a file that the settings name is not there yet.

    Raises:
        PosttrainError: as the trainer would raise it.
    """
    column = group_column(train, settings.group_column)
    log = grouped_rows(GroupStats.of(train, column, names=settings.groups), column=settings.group_column)
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size
    if settings_complete:
        build_controller(settings, groups=log.names, sizes=log.sizes, rows_per_step=rows)
    if validation is not None or settings.controller in NEEDS_VALIDATION:
        validation_groups(validation, names=log.names, column=str(column))


def build_controller(
    settings: Any, *, groups: Sequence[str], sizes: Sequence[int] | None, rows_per_step: int
) -> MixingController:
    """The controller that the settings name.

    Args:
        settings: an `AioliConfig`, or what has its names.
        groups: in order. sizes: training rows of each; None = streams, which nobody has counted.
        rows_per_step: over all ranks.

    Raises:
        ConfigError: settings that do not fit the groups.
    """
    kind = settings.controller
    prior = None if settings.prior is None else as_proportions(settings.prior, groups, where="method.prior")
    if kind == "aioli":
        _warn_of_small_groups(settings, groups, sizes or [], rows_per_step)
        return _aioli(settings, groups, prior, rows_per_step)
    made: MixingController
    if kind == "skillit":
        made = SkillItController(groups, graph=read_graph(str(settings.skill_graph), groups), eta=settings.eta)
    elif kind == "doremi":
        made = DoReMiController(groups, step_size=settings.step_size, smoothing=settings.smoothing)
    elif kind == "doge":
        made = DoGEController(groups, step_size=settings.step_size)
    elif kind == "natural":
        if sizes is None:
            raise ConfigError(
                "proportions by the number of rows, and the rows of a stream are not counted",
                where="method.controller",
                got=kind,
                fix="Use stratified, or static with proportions",
            )
        made = MixingController(groups, np.array(sizes) / sum(sizes))
    elif kind == "static":
        made = MixingController(groups, _static(settings, groups))
    else:
        made = MixingController(groups)
    if prior is not None:
        made.prior = prior
    return made


def _warn_of_small_groups(settings: Any, groups: Sequence[str], sizes: Sequence[int], rows_per_step: int) -> None:
    """A block that measures a group may need more rows than the group has; they then come again."""
    rows = settings.one_hot_factor * rows_per_step * settings.learn_steps
    for name, size in zip(groups, sizes, strict=bool(sizes)):
        if 0 < size < rows:
            told = f"group {name!r} has {size} rows and a block that measures it draws {rows:g}"
            warnings.warn(f"{told}: each comes up to {-(-rows // size):g} times", UserWarning, stacklevel=2)


def _static(settings: Any, groups: Sequence[str]) -> list[float]:
    if settings.proportions is not None:
        return as_proportions(settings.proportions, groups, where="method.proportions")
    where = "method.proportions_from"
    return as_proportions(read_proportions(str(settings.proportions_from), groups, where=where), groups, where=where)


def _aioli(settings: Any, groups: Sequence[str], prior: list[float] | None, rows_per_step: int) -> AioliController:
    """Checked: the measurement fits into a round, and its mixtures can be told apart in whole rows."""
    steps = len(groups) * settings.learn_sweeps * settings.learn_steps
    share = steps / settings.mixing_rounds_every
    told = f"{len(groups)} groups * {settings.learn_sweeps} sweeps * {settings.learn_steps} steps = {steps}"
    if share >= 1:
        raise ConfigError(
            "measuring would take the whole round",
            where="method.mixing_rounds_every",
            got=f"{settings.mixing_rounds_every}, {told} (method.learn_sweeps, method.learn_steps)",
            allowed=f"more than {steps}",
        )
    if share > 0.5:
        warnings.warn(f"{told} of every {settings.mixing_rounds_every} steps only measure", UserWarning, stacklevel=2)
    if settings.proportions_lag >= settings.mixing_rounds_every - steps:
        raise ConfigError(
            "a decision would not reach its own round",
            where="method.proportions_lag",
            got=settings.proportions_lag,
            allowed=f"below {settings.mixing_rounds_every - steps}, the steps of a round after measuring",
        )
    made = AioliController(
        groups,
        sweeps=settings.learn_sweeps,
        steps=settings.learn_steps,
        one_hot_factor=settings.one_hot_factor,
        eta=settings.eta,
        ema=settings.ema,
        normalize=settings.normalize_matrix,
        diagonal=settings.diagonal,
        static=settings.static_matrix,
        seed=settings.sampling_seed,
        prior=prior,
    )
    realised = np.stack([realised_shares(row, rows_per_step, settings.learn_steps) for row in made.mixtures])
    solve_mixing_matrix(realised, np.zeros_like(realised), diagonal=settings.diagonal)
    return made


def read_graph(path: str, groups: Sequence[str]) -> np.ndarray:
    """(m, m) skill graph of a JSON file with "groups" and "skill_graph", in the order of `groups`.

    Raises:
        ConfigError: no such file, no graph in it, or other groups.
    """
    where = "method.skill_graph"
    try:
        found = json.loads(Path(path).read_text())
        known, graph = list(found["groups"]), np.array(found["skill_graph"], dtype=np.float64)
        if graph.shape != (len(known), len(known)) or not np.isfinite(graph).all():
            raise ValueError(f"a graph of {len(known)} groups has {len(known)} rows of as many numbers")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(
            f"no skill graph can be read: {' '.join(str(problem).split())}",
            where=where,
            got=path,
            allowed='JSON with "groups" and "skill_graph"',
        ) from None
    if set(known) != set(groups):
        raise ConfigError(
            "the file is about other groups", where=where, got=", ".join(known), allowed=", ".join(groups)
        )
    places = [known.index(name) for name in groups]
    return graph[np.ix_(places, places)]
