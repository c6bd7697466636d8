"""`posttrain study composition R`: how much of which source, in which order, for one or several model sizes.

Every point is an ordinary stage of an ordinary run of the recipe, in a folder of its model below `trainer.output_dir`.
Stages that are finished are not trained again, so a study that was stopped, or is given further amounts, goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from posttrain.config.loader import load
from posttrain.config.source import read_recipe
from posttrain.errors import ConfigError, DataError
from posttrain.methods.dmt.grid import QUESTIONS, Grid, Point, composition_grid, conflict, pareto
from posttrain.methods.dmt.plot import ModelCurves, draw_composition
from posttrain.reports.markdown import MISSING, escape, number, table
from posttrain.reports.records import write_json
from posttrain.reports.run_report import RunFolder
from posttrain.run import run

REPORT, NUMBERS, PLOT = "COMPOSITION.md", "composition.json", "composition.png"
Scores = dict[str, dict[str, float]]  # stage -> ability -> accuracy


@dataclass(frozen=True)
class ModelStudy:
    """Results of one model: its points in order, and what follows from them."""

    name: str
    overrides: tuple[str, ...]
    grid: Grid
    scores: Scores
    rows: dict[str, int]

    def mean(self, stage: str, sources: Sequence[str]) -> float:
        """Mean score of a stage over some abilities."""
        return sum(self.scores[stage][name] for name in sources) / len(sources)

    def pair(self, stage: str) -> tuple[float, float]:
        """(specialised, general) mean scores of a stage."""
        return self.mean(stage, self.grid.specialised), self.mean(stage, self.grid.general)

    def forgotten(self, point: Point) -> float | None:
        """Specialised score after stage 1 minus after stage 2; None for a point without two stages."""
        if point.replay is None:
            return None
        return self.pair("specialized")[0] - self.pair(point.stage)[0]

    def sweep(self) -> dict[float, tuple[float, float]]:
        """k -> (specialised, general)."""
        return {point.replay: self.pair(point.stage) for point in self.grid.points if point.replay is not None}

    def best_k(self) -> list[float]:
        """The k that no other k beats."""
        return pareto(self.sweep())


def study_composition(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    amounts: Sequence[float],
    replays: Sequence[float],
    models: Mapping[str, Sequence[str]] | None = None,
    questions: Sequence[str] = tuple(QUESTIONS),
    train: bool = True,
) -> tuple[list[ModelStudy], Path]:
    """Train what is not finished yet, then report.

    Args:
        recipe: a recipe with `data.train.mixture`, roles, and an evaluation that tells the score of every source:
            a group of `data.eval`, or a task of `data.eval_tasks`, of its name. Its `stages` are not read.
        overrides: as for training.
        amounts, replays, questions: see `composition_grid`.
        models: name -> overrides that make its model; None is the recipe's own model.
        train: false only reports on what is there.

    Returns:
        Each model's results, and the path of the report.

    Raises:
        ConfigError: the recipe, or what is asked of it, cannot be used. DataError: a stage or a score is missing.
    """
    config = load(recipe, overrides)
    values, _ = read_recipe(recipe, list(overrides))
    grid = composition_grid(values, amounts=amounts, replays=replays, questions=questions)
    root = Path(str(config.trainer.output_dir))
    studies = []
    for name, own in (models or {"model": ()}).items():
        stages = f"stages={json.dumps(grid.stages)}"
        complete = [*overrides, *own, stages, "data=", f"trainer.output_dir={(root / name).as_posix()}"]
        if train:
            run(recipe, complete)
        studies.append(_read(name, tuple(own), grid, root / name))
    return studies, _write(root, studies)


def parse_fractions(text: str, *, option: str) -> list[float]:
    """Numbers of a text such as 1,1/4,0.0625.

    Raises:
        ConfigError: something is no number.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(float(Fraction(part.strip())))
        except (ValueError, ZeroDivisionError):
            raise ConfigError("not a list of numbers", where=option, got=part, allowed="such as 1,1/4,1/16") from None
    return found


def parse_models(given: Sequence[str]) -> dict[str, list[str]] | None:
    """Models given as "NAME: key=value key=value"; None for none.

    Raises:
        ConfigError: no name, no override, or a name that comes twice.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        name, separator, rest = text.partition(":")
        own = rest.split()
        allowed = '"NAME: key=value key=value", e.g. "small: model.tiny.hidden_size=32"'
        if not separator or not name.strip().isidentifier() or not own or not all("=" in item for item in own):
            raise ConfigError("not a model", where="--model", got=text, allowed=allowed)
        if name.strip() in found:
            raise ConfigError("two models have this name", where="--model", got=name.strip(), fix="Rename one")
        found[name.strip()] = own
    return found or None


# ---- results ----


def _read(name: str, overrides: tuple[str, ...], grid: Grid, folder: Path) -> ModelStudy:
    abilities = [*grid.specialised, *grid.general]
    scores: Scores = {}
    rows: dict[str, int] = {}
    for stage in (str(stage["name"]) for stage in grid.stages):
        place = RunFolder(folder / stage)
        evaluation = place.read_evals().get("after")
        if evaluation is None:
            raise DataError("the stage has no evaluation", where=str(place.path), fix="Train it; write data.eval")
        told = {**evaluation.get("per_group", {}), **evaluation.get("tasks", {})}
        for ability in abilities:
            if ability not in told:
                raise DataError(
                    "the evaluation has no score of the source's name",
                    where=str(place.path),
                    got=ability,
                    allowed=f"groups and tasks: {', '.join(told)}",
                    fix="Name the sources like the groups of data.eval, or add data.eval_tasks",
                )
        scores[stage] = {ability: float(told[ability]["accuracy"]) for ability in abilities}
        rows[stage] = sum(part["rows"] for part in place.read_run().get("mixture", {}).values())
    return ModelStudy(name, overrides, grid, scores, rows)


def _write(root: Path, studies: Sequence[ModelStudy]) -> Path:
    write_json(root / NUMBERS, {"models": [_numbers(study) for study in studies]})
    (root / PLOT).write_bytes(draw_composition([_curves(study) for study in studies]))
    path = root / REPORT
    path.write_text(_page(studies), encoding="utf-8")
    return path


def _numbers(study: ModelStudy) -> dict[str, Any]:
    points = [
        {
            "question": point.question,
            "training": point.label,
            "stage": point.stage,
            "fractions": point.fractions,
            "k": point.replay,
            "rows_of_the_last_stage": study.rows[point.stage],
            "scores": study.scores[point.stage],
            "specialised": study.pair(point.stage)[0],
            "general": study.pair(point.stage)[1],
            "forgotten": study.forgotten(point),
        }
        for point in study.grid.points
    ]
    conflicts = conflict(study.grid.points, study.scores)
    return {
        "model": study.name,
        "overrides": list(study.overrides),
        "points": points,
        "conflict": {f"{amount:g}": found for amount, found in conflicts.items()},
        "pareto_k": study.best_k(),
    }


def _curves(study: ModelStudy) -> Any:
    alone: dict[str, list[tuple[float, float]]] = {}
    together: dict[str, list[tuple[float, float]]] = {}
    strategies: dict[str, tuple[float, float]] = {}
    for point in study.grid.points:
        for source, part in point.fractions.items():
            curves = {"amount": alone, "mixed": together}.get(point.question)
            if curves is not None:
                curves.setdefault(source, []).append((part, study.scores[point.stage][source]))
        if point.question == "strategy" and point.replay is None:
            special, general = study.pair(point.stage)
            strategies[point.label] = (general, special)
    sweep = [(k, general, special) for k, (special, general) in sorted(study.sweep().items())]
    ordered = [{name: sorted(found) for name, found in curves.items()} for curves in (alone, together)]
    return ModelCurves(study.name, ordered[0], ordered[1], strategies, sweep)


def table_rows(studies: Sequence[ModelStudy]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the one table, accuracies in per cent."""
    abilities = [*studies[0].grid.specialised, *studies[0].grid.general]
    header = ["training", "model", "question", "rows", *abilities, "specialised", "general", "forgotten"]
    rows = []
    for study in studies:
        for point in study.grid.points:
            scores = [100 * study.scores[point.stage][name] for name in abilities]
            scores += [100 * value for value in study.pair(point.stage)]
            lost = study.forgotten(point)
            shown = [f"{value:.1f}" for value in scores] + [MISSING if lost is None else f"{100 * lost:.1f}"]
            rows.append([point.label, study.name, point.question, number(study.rows[point.stage]), *shown])
    return header, rows


def best_lines(studies: Sequence[ModelStudy]) -> list[str]:
    """For every model with a sweep, the k that no other beats, with their scores."""
    lines = []
    for study in studies:
        sweep = study.sweep()
        shown = [f"{k:g} ({100 * sweep[k][0]:.1f} / {100 * sweep[k][1]:.1f})" for k in study.best_k()]
        if shown:
            lines.append(f"{study.name}: k that no other beats (specialised / general): {', '.join(shown)}")
    return lines


def _page(studies: Sequence[ModelStudy]) -> str:
    header, rows = table_rows(studies)
    asked = {point.question for study in studies for point in study.grid.points}
    parts = ["# Data composition", "Accuracies in per cent after training; one seed, so small differences are noise."]
    parts.append("\n".join(f"- {key}: {text}" for key, text in QUESTIONS.items() if key in asked))
    parts.append(table([escape(name) for name in header], [[escape(cell) for cell in row] for row in rows]))
    parts.append(
        "`rows` are those of an epoch of the last stage. `forgotten`: the specialised score after stage 1 minus that "
        "after stage 2."
    )
    for study in studies:
        for amount, found in conflict(study.grid.points, study.scores).items():
            told = ", ".join(f"{escape(name)} {100 * value:+.1f}" for name, value in found.items())
            parts.append(f"{escape(study.name)}: with the others minus alone, {amount:g} of the rows: {told}.")
    parts += [f"{escape(line)}." for line in best_lines(studies)]
    parts.append(f"![Scores by amount, and general against specialised scores over k]({PLOT})")
    return "\n\n".join(parts) + "\n"
