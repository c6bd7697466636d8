"""Which numbers of an evaluation a study can be decided on, told before anything runs."""

from __future__ import annotations

import re
from dataclasses import fields

from posttrain import registry
from posttrain.errors import ConfigError, PosttrainError, nearest
from posttrain.evaluation.results import EvalResult, Score, pass_at_k_sizes
from posttrain.reports.measure import Measure
from posttrain.reproduce.claims import Study

_NOT_NUMBERS = {"samples", "per_group", "pass_at_k", "partial"}
_OF_A_TASK = re.compile(r"^tasks\.[\w-]+\.")
# A group's name may hold dots.
_OF_A_GROUP = re.compile(r"per_group\.(.+?)\.(pass_at_k\..+|[^.]+)")


def unknown_metrics(study: Study, num_generations: int) -> list[PosttrainError]:
    """Metrics that no evaluation of the study will have. Which groups there are is known afterwards.

    Args:
        study: its metrics are read as `posttrain.reports.measure.Measure` reads them.
        num_generations: completions of each evaluation prompt; they decide which pass@k there are.
    """
    errors: list[PosttrainError] = []
    methods = (method for method in registry.METHODS.values() if method.measures is not None)
    declared = {name for method in methods for name in method.load(str(method.measures))}
    rates = [f"pass@{k}" for k in pass_at_k_sizes(num_generations)]
    for metric in study.metrics():
        path = Measure(metric).path
        if path in declared:
            continue
        path = re.sub(_OF_A_TASK, "", path)
        group = _OF_A_GROUP.fullmatch(path)
        plain = _numbers(Score if group else EvalResult)
        if (group[2] if group else path) in (*plain, *(Measure(rate).path for rate in rates)):
            continue
        prefix = f"per_group.{group[1]}." if group else ""
        known = [prefix + name for name in (*plain, *rates)]
        errors.append(
            ConfigError(
                "an evaluation has no such number",
                where=f"{study.source.file} metric",
                got=metric,
                allowed=", ".join(known) + ("" if group else ", or one of a group: per_group.<group>.accuracy"),
                fix=nearest(metric, known),
            )
        )
    return errors


def _numbers(kind: type[Score]) -> list[str]:
    return [item.name for item in fields(kind) if item.name not in _NOT_NUMBERS]
