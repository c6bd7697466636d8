"""What Aioli adds to stages: `mix`, proportions or a skill graph from runs that earlier stages finished; and rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from posttrain.config.run_config import RunConfig
from posttrain.config.steps import StageStep
from posttrain.console import is_main_process, say
from posttrain.errors import DataError, PosttrainError, SupportError
from posttrain.methods.aioli import fits
from posttrain.methods.aioli.mix_block import MixBlock, mix_findings
from posttrain.methods.aioli.rounds import RECORD
from posttrain.reports.records import write_json

# Of RegMix's simulated mixtures in a stage; `posttrain mix regmix` has it as an option.
REGMIX_SEED = 0


@dataclass(frozen=True)
class StaticRun:
    """A finished run: its proportions, and the validation losses before and after it. Each (m,)."""

    name: str
    folder: Path
    proportions: tuple[float, ...]
    start: tuple[float, ...]
    end: tuple[float, ...]

    @property
    def mean_loss(self) -> float:
        """Mean of the groups' losses at the end, which every method here minimises."""
        return sum(self.end) / len(self.end)

    def record(self) -> dict[str, Any]:
        """For the reports."""
        numbers = {"proportions": self.proportions, "start": self.start, "end": self.end}
        return {"name": self.name, "folder": str(self.folder), **numbers, "mean_loss": self.mean_loss}


def read_run(folder: Path) -> tuple[list[str], list[list[float]], list[float]]:
    """(groups, validation losses of every measurement in order, proportions) of a finished run.

    Raises:
        DataError: it is not finished, or its record lacks losses of the start and the end.
    """

    path = folder / RECORD
    if not path.exists() or not (folder / "finished.json").exists():
        raise DataError("the run is not finished", where=str(folder), fix="Train it; leave out --report-only")
    found = json.loads(path.read_text(encoding="utf-8"))
    losses = [record["losses"] for record in found["records"] if "losses" in record]
    if len(losses) < 2:
        raise DataError("the record of the run has no validation losses", where=str(path), fix="Write data.validation")
    return found["groups"], losses, found["proportions"]


class StreamStep(StageStep):
    """What the rows of a stream cannot tell the controllers of a run."""

    def rule_findings(self, run: RunConfig) -> Iterator[PosttrainError]:
        if run.data.train.streaming and run.method.fields.get("controller") == "natural":
            yield SupportError(
                "proportions by the number of rows, and the rows of a stream are not counted",
                where=run.where("method", "controller"),
                got="natural",
                fix="Use stratified, or static with proportions",
            )


class MixStep(StageStep):
    """`mix` of a stage: a setting of its method from the finished runs of earlier stages."""

    block = MixBlock
    is_identity = False  # the setting that it decides is one of the method
    decides_later = True

    def plan_findings(self, stage: Any, earlier: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], PosttrainError]]:
        yield from mix_findings(self.settings, stage, earlier)

    def method_settings(self, root: Path, stage: str) -> dict[str, Any]:
        return dict([self.settings.setting(root, stage)])

    def prepare(self, run: RunConfig, folder: Path) -> None:
        """Write the file that the stage's method is set to, on rank 0 alone."""
        block: MixBlock = self.settings
        if not block.is_computed:
            return
        _, path = block.setting(folder.parent, folder.name)
        with PartialState().main_process_first():
            if is_main_process():
                runs = [read_static(folder.parent / name) for name in block.runs]
                groups = read_run(folder.parent / block.runs[0])[0]
                found = found_by(block.find, runs)
                write_json(path, {"groups": groups, **found, "found_by": block.find, "runs": block.runs})
                shares = zip(groups, found.get("proportions", []), strict=False)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in shares)
                say(f"{folder.name}: {block.find} of {len(runs)} runs{': ' if shown else ''}{shown}")


def read_static(folder: Path) -> StaticRun:
    """A finished run of any stage, as `posttrain mix` reads its own."""
    _, losses, proportions = read_run(folder)
    return StaticRun(folder.name, folder, tuple(proportions), tuple(losses[0]), tuple(losses[-1]))


def found_by(find: str, runs: list[StaticRun]) -> dict[str, Any]:
    """What is found on the runs: proportions, or a skill graph of all but the first.

    Raises:
        DataError: the runs do not tell it.
    """
    proportions, losses = np.array([run.proportions for run in runs]), np.array([run.end for run in runs])
    m = proportions.shape[1]
    if find == "grid":
        best = min(runs, key=lambda run: run.mean_loss)
        return {"proportions": best.proportions, "best": best.name}
    if find == "dml":
        law = fits.fit_static_law(proportions, losses)
        quality = fits.r_squared(losses, law.predict(proportions))
        return {"proportions": fits.best_by_law(law, m), "r_squared": quality}
    if find == "regmix":
        linear = fits.fit_linear_law(proportions, losses)
        quality = fits.r_squared(losses, linear.predict(proportions))
        return {"proportions": fits.best_by_simulation(linear, m, seed=REGMIX_SEED), "r_squared": quality}
    if not np.array_equal(proportions[1:], np.eye(m)):
        raise DataError(
            "a skill graph needs a run on each group alone, in the order of the groups",
            where=str(runs[0].folder.parent),
            got=[run.name for run in runs[1:]],
        )
    return {"skill_graph": fits.skill_graph(np.array(runs[0].start), losses[1:])}
