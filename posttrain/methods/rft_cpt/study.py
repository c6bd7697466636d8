"""`posttrain study continual R`: the score matrix of every variant as table and heat map, and its metrics."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posttrain.algorithms.score_matrix import Metric, ScoreMatrix, all_metrics, drops
from posttrain.config.loader import load
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError
from posttrain.reports.markdown import escape, table
from posttrain.reports.records import write_atomic, write_json
from posttrain.reports.run_report import AFTER, BEFORE, RunFolder
from posttrain.reports.sequences import matrix_of
from posttrain.run import run

REPORT, NUMBERS = "CONTINUAL.md", "continual_report.json"


@dataclass(frozen=True)
class VariantReport:
    """One variant of the preset `continual`."""

    name: str
    paradigm: str
    matrix: ScoreMatrix
    metrics: dict[str, Metric]
    became: dict[str, str]
    cost: dict[str, float]


def study_continual(
    recipe: str | Path, overrides: list[str] | None = None, *, train: bool = True, known: float = 0.5
) -> tuple[list[VariantReport], Path]:
    """Train what is not finished yet, then report.

    Args:
        recipe: a recipe with `stages: {preset: continual, ...}`.
        overrides: as for training.
        train: false only reports on what is there.
        known: accuracy from which on the base model could already do a task; a later drop on it is not called
            forgetting of what training taught.

    Returns:
        The variants in order, and the path of the report beside the stages' folders.

    Raises:
        ConfigError: the recipe has no such variant. DataError: a stage, or a score, is missing.
    """
    config = load(recipe, overrides or [])
    stages = {name: stage for name, _, stage in resolve_stages(config)}
    placed = {n: s.stage.lineage for n, s in stages.items() if s.stage is not None and s.stage.lineage}
    variants: dict[str, Mapping[str, Any]] = {}
    joints: list[str] = []
    alone: dict[str, Path] = {}
    root = Path(str(config.trainer.output_dir))
    for name, place in placed.items():
        if place.get("apart") == "multitask_sft":
            joints.append(name)
        elif place.get("apart") == "single_sft":
            alone.setdefault(place["task"], root / name)
        elif "order" in place:
            variants.setdefault(place["variant"], place)
    if not variants:
        fix = "Write stages: {preset: continual, ...}"
        raise ConfigError("the recipe trains no sequence of tasks", where=str(recipe), fix=fix)
    if train:
        run(recipe, overrides)
    reports = []
    for name, lineage in variants.items():
        matrix = matrix_of(root, lineage, joint=root / joints[0] if joints else None, alone=alone)
        folders = [root / stage for stage, found in placed.items() if found.get("variant") == name]
        numbers = all_metrics(matrix), drops(matrix, known=known, tolerance=0.02)
        reports.append(VariantReport(name, str(lineage["paradigm"]), matrix, *numbers, _cost(folders)))
    return reports, _write(root, reports, known, joints)


def _cost(folders: list[Path]) -> dict[str, float]:
    total: dict[str, float] = {}
    for folder in folders:
        for name, value in RunFolder(folder).costs().items():
            total[name] = total.get(name, 0.0) + value
        rif = (RunFolder(folder).read_run().get("lineage") or [{}])[-1].get("rif")
        if rif:
            total["rows kept by the filter"] = total.get("rows kept by the filter", 0.0) + rif["kept"]
            total["tokens of the filter"] = total.get("tokens of the filter", 0.0) + rif["generated_tokens"]
    return total


def _together(root: Path, joint: str) -> list[str]:
    """Section on a stage that trained all tasks at once: every score before and after, and what it cost."""
    evals = RunFolder(root / joint).read_evals()
    found = {name: evals.get(name, {}).get("tasks", {}) for name in (BEFORE, AFTER)}
    names = list(found[AFTER])
    body = [
        [told, *(_percent(found[name][task]["accuracy"]) if task in found[name] else "–" for task in names)]
        for name, told in ((BEFORE, "before"), (AFTER, "after all tasks together"))
    ]
    parts = [f"## {escape(joint)}", "", table(["accuracy on", *map(escape, names)], body), ""]
    return [*parts, *(f"- {name}: {value:,.0f}" for name, value in _cost([root / joint]).items()), ""]


def _write(root: Path, reports: list[VariantReport], known: float, joints: Sequence[str]) -> Path:
    """Report, plot and numbers."""
    parts = ["# Continual training", "", f"Order of the tasks: {', '.join(map(escape, reports[0].matrix.tasks))}.", ""]
    parts += ["![Score matrix of every variant](plots/continual.png)", ""]
    write_atomic(root / "plots" / "continual.png", heat_maps(reports))
    heads = ["metric", *[escape(report.name) for report in reports]]
    rows = [[name.replace("_", " "), *[_shown(r.metrics[name]) for r in reports]] for name in reports[0].metrics]
    parts += ["## Metrics", "", table(heads, rows), ""]
    reasons = {f"{name.replace('_', ' ')}: {m.reason}" for r in reports for name, m in r.metrics.items() if m.reason}
    parts += [f"- {line}" for line in sorted(reasons)]
    parts += ["", _READING.format(known=f"{known:.0%}"), ""]
    for report in reports:
        m = report.matrix
        names = [*m.tasks, *m.general]
        before, last = [pair[0] for pair in m.general.values()], [pair[1] for pair in m.general.values()]
        body = [["before", *map(_percent, [*m.base, *before])]]
        body += [[f"after {t}", *map(_percent, row)] for t, row in zip(m.tasks, m.scores, strict=True)]
        body[-1] += list(map(_percent, last))
        body = [row + [""] * (len(names) + 1 - len(row)) for row in body]
        parts += [f"## {escape(report.name)}", "", table(["accuracy on", *map(escape, names)], body), ""]
        parts += [f"- {escape(task)}: {what}" for task, what in report.became.items()]
        parts += [f"- {name}: {value:,.0f}" for name, value in report.cost.items()]
        parts += [""]
    for joint in joints:
        parts += _together(root, joint)
    write_json(root / NUMBERS, [_numbers(report) for report in reports])
    return write_atomic(root / REPORT, "\n".join(parts).rstrip() + "\n")


_READING = (
    "Rows are stages, columns what was evaluated. Forgetting is the best score from a task's own stage on minus the "
    "last one; the forgetting measure is the last score minus the best of the whole sequence, without the last task "
    "unless it says all tasks. On a task that the base model did at {known} or better, an end below that is a lost "
    "ability of the base model, and a drop to no less than that a lost gain; neither is forgetting of what training "
    "taught. Drops of up to 2 points are none. One run: read "
    "differences with the standard errors in each stage's report."
)


def _shown(metric: Metric) -> str:
    return "–" if metric.value is None else f"{100 * metric.value:+.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _numbers(report: VariantReport) -> dict[str, Any]:
    m = report.matrix
    return {
        "variant": report.name,
        "paradigm": report.paradigm,
        "order": m.tasks,
        "base": m.base,
        "scores": m.scores,
        "joint": m.joint,
        "single": m.single,
        "general": {name: list(pair) for name, pair in m.general.items()},
        "metrics": {name: {"value": found.value, "reason": found.reason} for name, found in report.metrics.items()},
        "tasks": report.became,
        "cost": report.cost,
    }


def heat_maps(reports: list[VariantReport]) -> bytes:
    """PNG: one heat map a variant, the base row on top, every cell with its number in per cent."""
    count, size = len(reports), len(reports[0].matrix.tasks)
    columns = min(count, 3)
    rows = -(-count // columns)
    width, height = columns * (1.6 + 0.75 * size), rows * (1.2 + 0.5 * (size + 1))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    for place, report in enumerate(reports, start=1):
        m = report.matrix
        axes = figure.add_subplot(rows, columns, place)
        cells = [list(m.base), *map(list, m.scores)]
        axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                colour = "white" if value < 0.6 else "black"
                axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(size), m.tasks, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(size + 1), ["before", *[f"after {task}" for task in m.tasks]], fontsize=8)
        axes.set_title(report.name, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
