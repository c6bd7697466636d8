"""Which combinations there are, which of them are refused, and a selection in which every pair of factors is met.

Factors: processes, split (rows of a micro-batch over all processes x micro-batches), engine, offload, trainer. Those
of a launch (engine, offload, processes) are a `Group`; all trainers and splits of a group share one launch, which is
what costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from posttrain.seam.sharding import offload_finding

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
# What is kept in the CPU's memory. "both" is parameters and optimizer.
OFFLOADS: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("parameters",),
    "both": ("optimizer", "parameters"),
}
PROCESSES = (1, 2)
ROWS = 8
# (rows of a micro-batch over all processes, micro-batches of an optimizer step)
SPLITS = ((2, 4), (4, 2), (8, 1))


@dataclass(frozen=True)
class Group:
    """One launch."""

    engine: str
    offload: str = "none"
    processes: int = 1

    @property
    def name(self) -> str:
        """ "zero2+optimizer-2"."""
        return f"{self.engine}{'' if self.offload == 'none' else '+' + self.offload}-{self.processes}"


@dataclass(frozen=True)
class Cell:
    """One trainer with one split, inside a group."""

    trainer: str
    split: tuple[int, int]

    @property
    def shown(self) -> str:
        """ "4x2"."""
        return f"{self.split[0]}x{self.split[1]}"


# Everything is compared with it.
REFERENCE = Group("ddp")
REFERENCE_SPLIT = (8, 1)


def refusal(group: Group) -> str | None:
    """The error with which a run of this group ends at its start; None where it trains."""
    engine = None if group.engine == "ddp" else group.engine
    found = offload_finding(engine, dict.fromkeys(OFFLOADS[group.offload], "cpu"))
    return None if found is None else str(found)


def groups(engines: Iterable[str] = ENGINES, processes: Iterable[int] = PROCESSES) -> tuple[list[Group], list[Group]]:
    """(groups that train, groups that are refused), each over all offloads."""
    every = [
        Group(engine, offload, number) for engine, offload, number in product(engines, OFFLOADS, tuple(processes))
    ]
    refused = [group for group in every if refusal(group) is not None]
    return [group for group in every if group not in refused], refused


Plan = dict[Group, list[Cell]]


def whole_table(trainers: Iterable[str], trained: Sequence[Group]) -> Plan:
    """Every trainer with every split in every group."""
    cells = [Cell(trainer, split) for trainer, split in product(trainers, SPLITS)]
    return {group: list(cells) for group in trained}


def covering(trainers: Sequence[str], trained: Sequence[Group]) -> Plan:
    """A small plan in which every pair of factor values that can meet does, and every trainer is in every group pair.

    Greedy: groups first, since a launch costs most, then cells by the number of pairs they add; where two add as many,
    the one with more micro-batches is taken.
    """
    chosen = _fewest_groups(trained)
    missing = {pair for group in trained for cell in _cells(trainers) for pair in _pairs(group, cell)}
    plan: Plan = {group: [] for group in chosen}
    while missing:
        group, cell = max(
            product(chosen, _cells(trainers)),
            key=lambda place: (len(missing & _pairs(*place)), place[1].split[1], -len(plan[place[0]])),
        )
        gained = missing & _pairs(group, cell)
        if not gained:
            raise AssertionError(f"pairs that no chosen group has: {sorted(map(str, missing))[:3]}")
        plan[group].append(cell)
        missing -= gained
    for cells in plan.values():
        if all(cell.split[1] == 1 for cell in cells):
            cells.append(Cell(cells[0].trainer, SPLITS[0]))  # a micro-batch can only be lost among several
    return plan


def _cells(trainers: Sequence[str]) -> list[Cell]:
    return [Cell(trainer, split) for trainer, split in product(trainers, SPLITS)]


def _fewest_groups(trained: Sequence[Group]) -> list[Group]:
    """Groups in which every pair of engine, offload and processes is met."""
    missing = {pair for group in trained for pair in _group_pairs(group)}
    chosen: list[Group] = []
    while missing:
        best = max(trained, key=lambda group: (len(missing & _group_pairs(group)), group.processes))
        chosen.append(best)
        missing -= _group_pairs(best)
    return chosen


def _factors(group: Group) -> list[tuple[str, object]]:
    return [("engine", group.engine), ("offload", group.offload), ("processes", group.processes)]


def _group_pairs(group: Group) -> set[frozenset[tuple[str, object]]]:
    return set(_every_pair(_factors(group)))


def _pairs(group: Group, cell: Cell) -> set[frozenset[tuple[str, object]]]:
    return set(_every_pair([*_factors(group), ("trainer", cell.trainer), ("split", cell.split)]))


def _every_pair(factors: list[tuple[str, object]]) -> Iterator[frozenset[tuple[str, object]]]:
    for place, left in enumerate(factors):
        for right in factors[place + 1 :]:
            yield frozenset((left, right))
