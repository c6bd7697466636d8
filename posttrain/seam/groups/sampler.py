"""Rows drawn group by group, in proportions that may change while training goes on.

The order of groups and rows follows from the seed, the rows of an optimizer step, and the proportions with the step
from which each holds. Nothing else enters it: not the number of processes, not the split into micro-batches. A resumed
run therefore draws what the uninterrupted one does once it has the same proportions.

A decision reaches the rows late: by the end of a step the data loader has already asked for rows of the next one. The
delay is a number of steps, `lag`, that is set, logged and checked, not one that follows from the loader's settings.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler

from posttrain.data.streams import RowStreams
from posttrain.errors import ConfigError, DataError
from posttrain.seam.groups.log import GroupStats
from posttrain.seam.sampling import EpochRepeatSampler


@dataclass(frozen=True)
class FixedMixture:
    """Proportions of a block of steps that is planned before the run, and of which realised numbers are needed.

    Attributes:
        proportions: (m,) of sum 1.
        first: whether the block begins with this step.
    """

    proportions: np.ndarray
    first: bool


class GroupMixtureSampler(Sampler[int]):
    """Indices of rows, `rows_per_step` for each of `num_steps` optimizer steps.

    Every step takes whole numbers of rows of each group: a group is owed its share of the rows, and the groups that
    are owed most come first; what is rounded away is owed to the next step. So the rows that a group has given stay
    within a few of the sum of its shares, however often the proportions change. The rows of a step are put into a
    random order of its own. Within a group the rows come in a random order, each once before any comes again.
    Rows of streams come in the order of their stream instead.
    Deviation: arXiv 2411.05735 draws the group of each row independently, which adds noise and means the same.

    Args:
        groups: (N,) number of every row's group, 0 .. m-1, each with at least one row; None = rows of streams, which
            come in the order of their stream and are known by `RowStreams.number`.
        proportions: (m,) of the start, of sum 1.
        rows_per_step: rows of an optimizer step over all ranks and micro-batches.
        num_steps: of the whole run.
        seed: of every random order.
        lag: steps between the end of the step that a decision follows and the first step that it reaches.
        plan: optimizer step, from 0 -> its `FixedMixture`, or None where the proportions in force decide.
    """

    def __init__(
        self,
        groups: np.ndarray | None,
        *,
        proportions: Sequence[float] | np.ndarray,
        rows_per_step: int,
        num_steps: int,
        seed: int,
        lag: int = 1,
        plan: Callable[[int], FixedMixture | None] | None = None,
    ):
        self.num_groups = len(proportions)
        self.rows_per_step, self.num_steps, self.seed, self.lag = rows_per_step, num_steps, seed, lag
        self.plan = plan or (lambda step: None)
        self.history: list[tuple[int, list[float]]] = [(0, _checked(proportions, self.num_groups))]
        self.sizes: np.ndarray | None = None
        if groups is not None:
            self._take(groups)
        self._begun = 0  # steps of which a row was handed out

    def _take(self, groups: np.ndarray) -> None:
        self.sizes = np.bincount(groups, minlength=self.num_groups)
        if len(self.sizes) > self.num_groups or not self.sizes.all():
            raise ConfigError(
                "every group needs rows, and every row a group with a proportion",
                where="groups",
                got=self.sizes.tolist(),
                allowed=f"{self.num_groups} groups with at least one row each",
            )
        # 4 bytes a row: group after group, the rows of one in the order of the data.
        self._by_group = np.argsort(groups, kind="stable").astype(np.uint32)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        return self.num_steps * self.rows_per_step

    def set_proportions(self, proportions: Sequence[float] | np.ndarray, *, after: int) -> int:
        """Change the proportions by a decision made at the end of step `after`, and return the first step they reach.

        Raises:
            ConfigError: the loader has already drawn rows of that step: `lag` is too short for it.
        """
        first = after + 1 + self.lag
        if self._begun > first:
            raise ConfigError(
                "the data loader reads further ahead than the lag of the proportions",
                where="proportions_lag",
                got=self.lag,
                allowed=f"at least {self._begun - after - 1}",
                fix="Raise it, or lower trainer.dataloader_num_workers or trainer.dataloader_prefetch_factor",
            )
        while self.history[-1][0] >= first:
            self.history.pop()
        self.history.append((first, _checked(proportions, self.num_groups)))
        return first

    def load_history(self, history: Sequence[Sequence[float | list[float]]]) -> None:
        """Take back `history` as a checkpoint holds it, before the first row is drawn."""
        self.history = [(int(first), list(values)) for first, values in history]  # type: ignore[arg-type, call-overload]

    def proportions_at(self, step: int) -> np.ndarray:
        """(m,) proportions intended for a step, planned ones included."""
        planned = self.plan(step)
        if planned is not None:
            return planned.proportions
        place = bisect.bisect_right(self.history, step, key=lambda entry: entry[0])
        return np.asarray(self.history[place - 1][1])

    def __iter__(self) -> Iterator[int]:
        cursors = np.zeros(self.num_groups, dtype=np.int64)
        orders: dict[int, np.ndarray] = {}
        owed, owed_in_block = np.zeros(self.num_groups), np.zeros(self.num_groups)
        self._begun = 0
        for step in range(self.num_steps):
            self._begun = step + 1
            planned = self.plan(step)
            if planned is None:
                counts, owed = _whole_rows(owed + self.proportions_at(step) * self.rows_per_step, self.rows_per_step)
            else:
                owed_in_block = np.zeros(self.num_groups) if planned.first else owed_in_block
                due = owed_in_block + planned.proportions * self.rows_per_step
                counts, owed_in_block = _whole_rows(due, self.rows_per_step)
            sequence = np.repeat(np.arange(self.num_groups), counts)
            np.random.default_rng([self.seed, 0, step]).shuffle(sequence)
            for group in sequence.tolist():
                yield self._row(group, cursors, orders)

    def _row(self, group: int, cursors: np.ndarray, orders: dict[int, np.ndarray]) -> int:
        if self.sizes is None:
            cursors[group] += 1
            return RowStreams.number(group, int(cursors[group]) - 1)
        passes, place = divmod(int(cursors[group]), int(self.sizes[group]))
        if place == 0:
            # numpy reads missing parts of a seed as 0: the second tells what the generator is for.
            generator = np.random.default_rng([self.seed, 1, group, passes])
            orders[group] = generator.permutation(np.arange(self.sizes[group], dtype=np.uint32))
        cursors[group] += 1
        return int(self._by_group[self._starts[group] + orders[group][place]])


class MixedRepeatSampler(EpochRepeatSampler):
    """`EpochRepeatSampler` whose generation batches hold prompts of each group in given proportions.

    An epoch has as many generation batches as without proportions, and goes on in the order where the epoch before
    stopped: the prompts of a group come each once before any comes again, across epochs. Steps are generation batches,
    counted from the start of the run.

    Args:
        groups: (N,) number of every prompt's group. proportions: (m,) of the start, of sum 1.
        lag, plan: as in `GroupMixtureSampler`. Rest as in `EpochRepeatSampler`.
    """

    def __init__(
        self,
        data: Sized,
        *,
        groups: np.ndarray | None,
        proportions: Sequence[float],
        lag: int = 1,
        plan: Callable[[int], FixedMixture | None] | None = None,
        **layout: Any,
    ):
        super().__init__(data, **layout)
        self.groups, self.lag, self.plan = groups, lag, plan
        self.history: list[tuple[int, list[float]]] = [(0, _checked(proportions, len(proportions)))]
        self._order: GroupMixtureSampler | None = None

    def blocks(self) -> Iterator[list[int]]:
        per_epoch = len(self.data) // self.prompts_per_batch
        self._order = self._from_the_start((self.epoch + 1) * per_epoch)
        rows = itertools.islice(self._order, self.epoch * per_epoch * self.prompts_per_batch, None)
        while block := list(itertools.islice(rows, self.prompts_per_batch)):
            yield block

    def _from_the_start(self, steps: int) -> GroupMixtureSampler:
        order = GroupMixtureSampler(
            self.groups,
            proportions=self.history[0][1],
            rows_per_step=self.prompts_per_batch,
            num_steps=steps,
            seed=self.seed,
            lag=self.lag,
            plan=self.plan,
        )
        order.history = self.history  # the same list: a change is known to every epoch
        return order

    def set_proportions(self, proportions: Sequence[float] | np.ndarray, *, after: int) -> int:
        """As `GroupMixtureSampler.set_proportions`."""
        return (self._order or self._from_the_start(0)).set_proportions(proportions, after=after)

    def proportions_at(self, step: int) -> np.ndarray:
        """(m,) proportions intended for a generation batch, planned ones included."""
        return (self._order or self._from_the_start(0)).proportions_at(step)

    def load_history(self, history: Sequence[Sequence[float | list[float]]]) -> None:
        """As `GroupMixtureSampler.load_history`."""
        self.history[:] = [(int(first), list(values)) for first, values in history]  # type: ignore[arg-type, call-overload]


class PromptMixing(Protocol):
    """What changes the proportions of a policy run's prompts while it goes on."""

    lag: int

    def start(self, log: GroupStats) -> Sequence[float]:
        """Proportions of the start, in the order of the groups of `log`."""

    def planned(self, step: int) -> FixedMixture | None:
        """Mixture of a generation batch that is planned before the run."""

    def draw(self, order: MixedRepeatSampler) -> MixedRepeatSampler:
        """Take the order that it is to change, and return it."""


def prompt_order(
    data: Sized, log: GroupStats | None, args: Any, *, mixing: PromptMixing | None = None, **layout: Any
) -> EpochRepeatSampler:
    """The order of a policy run's prompts: permutations, or by the shares of groups that its arguments give.

    Args:
        data: prompts. log: their groups; None if they have none. args: a `PolicyConfig`. layout: of the sampler.
        mixing: changes the shares in the course of the run; announced by `args.changing_shares`.

    Raises:
        DataError: no groups. ConfigError: shares of other groups, or that are no shares; what changes them is
            announced and not there.
    """
    if (mixing is not None) != args.changing_shares:
        raise ConfigError(
            "changing_shares and what changes the shares go together",
            where="method.changing_shares",
            got=args.changing_shares,
            fix="From Python: attach it to the trainer before train(); a recipe with rollout.prompt_shares does so",
        )
    if args.prompt_groups is None:
        return EpochRepeatSampler(data, **layout)
    rows = prompt_groups(log, args)
    if mixing is not None:
        order = MixedRepeatSampler(
            data, groups=rows.numbers, proportions=mixing.start(rows), lag=mixing.lag, plan=mixing.planned, **layout
        )
        return mixing.draw(order)
    return MixedRepeatSampler(data, groups=rows.numbers, proportions=prompt_shares(rows, args), **layout)


def prompt_groups(log: GroupStats | None, args: Any) -> GroupStats:
    """The groups that prompts are to be drawn by.

    Raises:
        DataError: there are none.
    """
    if log is None:
        raise DataError(
            "the prompts have no group",
            where="method.prompt_group_column",
            got=args.prompt_group_column,
            fix="Name the column of groups, or write a mixture",
        )
    return log


def prompt_shares(log: GroupStats, args: Any) -> list[float]:
    """The fixed shares of the prompts' groups, in the order of `log`.

    Raises:
        ConfigError: shares of other groups, or that are no shares.
    """
    where = "method.prompt_proportions"
    if args.prompt_proportions_from is not None:
        shares = read_proportions(args.prompt_proportions_from, log.names, where=f"{where}_from")
        return _checked(shares, len(shares), where=f"{where}_from")
    given = dict(args.prompt_proportions)
    if set(given) != set(log.names):
        raise ConfigError(
            "these are not the groups of the prompts",
            where=where,
            got=", ".join(given) or given,
            allowed=", ".join(log.names),
        )
    shares = [float(given[name]) for name in log.names]
    return _checked(shares, len(shares), where=where)


def read_proportions(path: str | Path, groups: Sequence[str], *, where: str) -> list[float]:
    """Proportions of a JSON file with "groups" and "proportions", in the order of `groups`.

    Raises:
        ConfigError: no such file, no proportions in it, or other groups; `where` is the field that names the file.
    """
    try:
        found = json.loads(Path(path).read_text())
        values = dict(zip(found["groups"], found["proportions"], strict=True))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(
            f"no proportions can be read: {' '.join(str(problem).split())}",
            where=where,
            got=str(path),
            allowed='JSON with "groups" and "proportions"',
        ) from None
    if set(values) != set(groups):
        raise ConfigError(
            "the file is about other groups", where=where, got=", ".join(values), allowed=", ".join(groups)
        )
    return [float(values[name]) for name in groups]


def realised_shares(proportions: np.ndarray, rows_per_step: int, num_steps: int) -> np.ndarray:
    """(m,) shares of the rows that a planned block of steps draws; whole rows make them differ from what was asked."""
    total, owed = np.zeros(len(proportions)), np.zeros(len(proportions))
    for _ in range(num_steps):
        counts, owed = _whole_rows(owed + proportions * rows_per_step, rows_per_step)
        total += counts
    return total / total.sum()


def _checked(proportions: Sequence[float] | np.ndarray, num_groups: int, *, where: str = "proportions") -> list[float]:
    """The proportions as floats that sum to 1.

    Raises:
        ConfigError: they are not finite, negative, or do not sum to 1.
    """
    values = [float(value) for value in proportions]
    total = math.fsum(values)
    if len(values) != num_groups or not all(math.isfinite(v) and v >= 0 for v in values) or abs(total - 1) > 1e-6:
        raise ConfigError(
            "these are not the proportions of the groups",
            where=where,
            got=values,
            allowed=f"{num_groups} numbers >= 0 of sum 1",
        )
    return [value / total for value in values]


def _whole_rows(due: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(whole rows of each group, what it is still owed): `rows` rows to those that are owed most, none below 0."""
    counts = np.maximum(np.floor(due + 1e-9), 0).astype(np.int64)
    missing = rows - int(counts.sum())
    if missing > 0:
        # A stable order: ties go to the first group on every machine.
        most = np.argsort(-(due - counts), kind="stable")[:missing]
        counts[most] += 1
    for _ in range(-missing):
        counts[np.argmin(np.where(counts > 0, due - counts, np.inf))] -= 1
    return counts, due - counts
