"""What a sequence of tasks says at its end: the metrics of its score matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms.score_matrix import METRICS, all_metrics
from posttrain.config.run_config import RunConfig
from posttrain.errors import DataError
from posttrain.reports.sequences import matrix_of

MEASURES = tuple(f"continual.{name}" for name in METRICS)


def sequence_metrics(run: RunConfig, folder: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """{"continual": metrics} after the last stage of a sequence, those left out that are not defined.

    Raises:
        DataError: a score of an earlier stage is missing.
    """
    if lineage.get("apart") or not lineage.get("order") or lineage.get("position") != len(lineage["order"]):
        return {}
    try:
        found = all_metrics(matrix_of(folder.parent, lineage))
    except DataError as error:
        raise DataError(f"no metrics of the sequence {lineage['variant']}: {error}") from None
    return {"continual": {name: metric.value for name, metric in found.items() if metric.value is not None}}
