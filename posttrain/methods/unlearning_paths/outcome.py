"""What a stage that unlearns, or learns again, leaves beside its last evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config.run_config import RunConfig
from posttrain.methods.unlearning_paths.findings import METRICS, curve, level_steps, stage_numbers, steps_to_return
from posttrain.reports.records import read_metrics
from posttrain.reports.run_report import RunFolder

MEASURES = tuple(f"unlearning.{name}" for name in METRICS)


def path_numbers(run: RunConfig, folder: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """{"unlearning": numbers} of a stage that unlearns, or how soon one that learns again has brought it back."""
    if lineage.get("role") not in ("unlearn", "relearn"):
        return {}
    sets, events = list(run.data.probes or {}), read_metrics(RunFolder(folder).metrics_path)
    values: dict[str, Any] = stage_numbers(events, forget=lineage["forget"], sets=sets)
    name = f"answers/{lineage['forget']}_logp"
    points = curve(events, name)
    if lineage["role"] == "unlearn":
        retrained = curve(read_metrics(RunFolder(folder.parent / lineage["retrained"]).metrics_path), name)
        if retrained and points:
            values |= level_steps(points, retrained[-1][1])
        return {"unlearning": values}
    origin = read_metrics(RunFolder(folder.parent / lineage["of"]).metrics_path)
    before = stage_numbers(origin, forget=lineage["forget"], sets=sets)
    values = {"final_logp": values["final_logp"]} if values else {}
    if lineage["unlearned"] and before:
        lost = {"initial": before["initial_logp"], "unlearned": before["final_logp"]}
        steps = steps_to_return(points, **lost, fraction=lineage["fraction"])
        values |= {} if steps is None else {"steps_to_relearn": steps}
    return {"unlearning": values}
