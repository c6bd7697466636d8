"""Which numbers of an evaluation a study can be decided on, told before anything runs."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields

from posttrain.algorithms.score_matrix import METRICS
from posttrain.errors import ConfigError, PosttrainError
from posttrain.evaluation.results import EvalResult, Score, pass_at_k_sizes
from posttrain.methods.unlearning_paths.findings import METRICS as OF_PATHS
from posttrain.reports.measure import Measure
from posttrain.reproduce.claims import Study

_NOT_NUMBERS = {"samples", "per_group", "pass_at_k", "partial"}
# Of the preset `continual`: metrics of the score matrix, and what stands for each task.
_OF_UNLEARNING = "unlearning."  # of the preset `unlearning_paths`
_OF_A_SEQUENCE, _OF_A_TASK = "continual.", re.compile(r"^tasks\.[\w-]+\.")
# A group's name may hold dots.
_OF_A_GROUP = re.compile(r"per_group\.(.+?)\.(pass_at_k\..+|[^.]+)")


def unknown_metrics(study: Study, num_generations: int) -> list[PosttrainError]:
    """Metrics that no evaluation of the study will have. Which groups there are is known afterwards.

    Args:
        study: its metrics are read as `posttrain.reports.measure.Measure` reads them.
        num_generations: completions of each evaluation prompt; they decide which pass@k there are.
    """
    errors: list[PosttrainError] = []
    rates = [f"pass@{k}" for k in pass_at_k_sizes(num_generations)]
    for metric in study.metrics():
        path = Measure(metric).path
        if path.startswith(_OF_A_SEQUENCE) and path.removeprefix(_OF_A_SEQUENCE) in METRICS:
            continue
        if path.startswith(_OF_UNLEARNING) and path.removeprefix(_OF_UNLEARNING) in OF_PATHS:
            continue
        path = re.sub(_OF_A_TASK, "", path)
        group = _OF_A_GROUP.fullmatch(path)
        plain = _numbers(Score if group else EvalResult)
        if (group[2] if group else path) in (*plain, *(Measure(rate).path for rate in rates)):
            continue
        prefix = f"per_group.{group[1]}." if group else ""
        known = [prefix + name for name in (*plain, *rates)]
        close = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
        errors.append(
            ConfigError(
                "an evaluation has no such number",
                where=f"{study.source.file} metric",
                got=metric,
                allowed=", ".join(known) + ("" if group else ", or one of a group: per_group.<group>.accuracy"),
                fix=f"Perhaps you mean {close[0]!r}" if close else None,
            )
        )
    return errors


def _numbers(kind: type[Score]) -> list[str]:
    return [item.name for item in fields(kind) if item.name not in _NOT_NUMBERS]
