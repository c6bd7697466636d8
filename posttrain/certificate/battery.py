"""Runs a plan group by group, and compares every update with that of one process and one micro-batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.certificate.compare import TOLERANCE, moved, read, worst_difference
from posttrain.certificate.launching import WORKER, Launched, Recipe, lacking, launch, spec_of
from posttrain.certificate.plan import OFFLOADS, REFERENCE, REFERENCE_SPLIT, Cell, Group, Plan
from posttrain.errors import SupportError


@dataclass(frozen=True)
class Result:
    """Outcome of one cell: a figure, or why there is none.

    `figure` is the relative difference of the updates (see `compare.worst_difference`), of the tensor `tensor`.
    """

    group: Group
    cell: Cell
    figure: float | None = None
    tensor: str = ""
    error: str | None = None
    skipped: str | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON; `of` reads it."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Result:
        """The result that `record` made."""
        cell = Cell(record["cell"]["trainer"], tuple(record["cell"]["split"]))
        rest = {**record, "group": Group(**record["group"]), "cell": cell, "losses": tuple(record["losses"])}
        return cls(**rest)

    @property
    def is_equal(self) -> bool:
        """Whether the update is that of the reference."""
        return self.figure is not None and self.figure <= TOLERANCE

    @property
    def outcome(self) -> str:
        """equal, DIFFERS, FAILED or not run."""
        if self.skipped is not None:
            return "not run"
        if self.figure is None:
            return "FAILED"
        return "equal" if self.is_equal else "DIFFERS"


def run_plan(
    plan: Plan,
    recipes: Mapping[str, Recipe],
    folder: Path,
    *,
    trainers: Iterable[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    worker: str = WORKER,
    config: Path | None = None,
) -> list[Result]:
    """Run every group of a plan, the reference first, one after another.

    Args:
        plan: of `plan.covering` or `plan.whole_table`.
        recipes: of every trainer in it.
        folder: for what the launches leave.
        trainers: that the reference trains; None = those of the plan.
        say: is told what begins, and figures as they come.
        worker: module of the processes of all groups but the reference.
        config: the user's own accelerate config file for all groups but the reference.

    Returns:
        One result a cell. Groups that this machine cannot start are there as not run, with the reason.

    Raises:
        SupportError: the reference itself could not be made.
    """
    trainers = list(trainers or dict.fromkeys(cell.trainer for cells in plan.values() for cell in cells))
    wanted = [Cell(trainer, REFERENCE_SPLIT) for trainer in trainers]
    models = folder / "models"
    reference = _reference(wanted, recipes, folder, say)
    for trainer, fact in zip(trainers, reference.facts, strict=False):
        if fact.get("told"):
            say(f"{trainer}: {fact['told']}")
    if reference.error is not None:
        raise SupportError(f"the reference could not be trained: {reference.error}", where="doctor --gradients")
    results = []
    for group, cells in plan.items():
        if not cells:
            continue
        if (what := lacking(group)) is not None:
            say(f"{group.name}: not run, {what}")
            results += [Result(group, cell, skipped=what) for cell in cells]
            continue
        say(f"{group.name}: {len(cells)} runs")
        done = launch(
            group, cells, recipes=recipes, models=models, folder=folder / group.name, worker=worker, config=config
        )
        found = [judge(group, cell, done, reference) for cell in cells]
        say(f"{group.name}: {summary(found)}")
        results += found
    return results


def _reference(
    wanted: list[Cell], recipes: Mapping[str, Recipe], folder: Path, say: Callable[[str], None]
) -> Launched:
    """What the reference left, from an earlier call where it trained the same cells."""
    place = folder / "reference"
    spec, facts = place / "spec.json", place / "facts.json"
    if facts.exists() and json.loads(spec.read_text()) == spec_of(wanted, recipes, folder / "models"):
        return Launched(place, wanted, json.loads(facts.read_text()))
    say("reference: one process, 8 rows in one micro-batch")
    return launch(REFERENCE, wanted, recipes=recipes, models=folder / "models", folder=place)


def judge(group: Group, cell: Cell, done: Launched, reference: Launched) -> Result:
    """The result of one cell."""
    if done.error is not None:
        return Result(group, cell, error=done.error)
    fact, base = done.fact(cell), reference.fact(Cell(cell.trainer, REFERENCE_SPLIT))
    for told, whose in ((base.get("error"), "the reference: "), (fact.get("error"), "")):
        if told is not None:
            return Result(group, cell, error=whose + told)
    own = Cell(cell.trainer, REFERENCE_SPLIT)
    facts: dict[str, Any] = {"losses": tuple(fact["losses"]), "seconds": fact["seconds"]}
    if sorted(fact["engine"]["offload"]) != sorted(OFFLOADS[group.offload]):
        return Result(group, cell, error=f"offloads {fact['engine']['offload'] or 'nothing'}", **facts)
    start, tensor = worst_difference(read(done.file(cell, ".start")), read(reference.file(own, ".start")))
    if start > TOLERANCE:
        return Result(group, cell, error=f"begins with other weights, {start:.1e} in {tensor}", **facts)
    expected = read(reference.file(own))
    if not moved(expected):
        return Result(group, cell, error="the reference did not move, so nothing was compared", **facts)
    figure, tensor = worst_difference(read(done.file(cell)), expected)
    return Result(group, cell, figure=figure, tensor=tensor, **facts)


def counted(results: list[Result]) -> str:
    """How many updates are equal, differ, failed and were not run, in a sentence without full stop."""
    outcomes = [result.outcome for result in results]
    told = [f"{outcomes.count(name)} {name}" for name in ("DIFFERS", "FAILED", "not run") if name in outcomes]
    return ", ".join([f"{outcomes.count('equal')} of {len(outcomes)} updates equal (relative {TOLERANCE:.0e})", *told])


def summary(results: list[Result]) -> str:
    """One line: how many are equal, and the largest figure."""
    figures = [result.figure for result in results if result.figure is not None]
    equal = sum(result.is_equal for result in results)
    told = f"{equal} of {len(results)} equal"
    return told + (f", largest difference {max(figures):.1e}" if figures else "")
