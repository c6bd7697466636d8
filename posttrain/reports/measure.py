"""One number of an evaluation: where it stands in `eval.json`, how it is written, its value for each prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError
from posttrain.evaluation.results import Sample, mean_and_stderr, prompt_accuracies
from posttrain.reports.markdown import MISSING, percent, points

# Numbers of an evaluation that are shares of something, shown in per cent.
_FRACTIONS = ("accuracy", "truncated_fraction", "pass_at_k")
# Metrics of a sequence of tasks: means and differences of accuracies.
_OF_A_SEQUENCE = "continual."
# What a completion's record holds of a number that is a mean over completions.
_OF_A_SAMPLE = {"mean_length": "length", "truncated_fraction": "truncated"}


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation.

    Args:
        name: `accuracy`, `mean_length`, `pass@4`, or a path such as `per_group.2 digits.accuracy`.
    """

    name: str = "accuracy"

    @property
    def path(self) -> str:
        """Its place in an entry of `eval.json`."""
        return re.sub(r"(^|\.)pass@(\d+)$", r"\1pass_at_k.\2", self.name)

    @property
    def is_fraction(self) -> bool:
        """Whether it is a share, shown in per cent and compared in percentage points."""
        path = self.path
        return path.rpartition(".")[2] in _FRACTIONS or ".pass_at_k." in f".{path}" or path.startswith(_OF_A_SEQUENCE)

    @property
    def unit(self) -> str:
        """Of a difference."""
        return "percentage points" if self.is_fraction else "units"

    def read(self, evaluation: Mapping[str, Any] | None) -> tuple[float, float]:
        """(value, standard error over prompts); NaN where not recorded."""
        parent, _, last = self.path.rpartition(".")
        holder = _at(evaluation, parent) if parent else evaluation
        found = holder.get(last) if isinstance(holder, Mapping) else None
        if isinstance(found, Mapping):
            return _number(found.get("value")), _number(found.get("stderr"))
        error = holder.get(f"{last}_stderr") if isinstance(holder, Mapping) else None
        return _number(found), _number(error)

    def require(self, evaluations: Iterable[Mapping[str, Any]]) -> None:
        """Raise ConfigError unless one of the evaluations has it; the error lists what there is."""
        known = list(evaluations)
        if known and all(math.isnan(self.read(item)[0]) for item in known):
            names = sorted({name for item in known for name in _names(item)})
            raise ConfigError(
                "no evaluation has this number", where="--metric", got=self.name, allowed="one of: " + ", ".join(names)
            )

    def by_prompt(self, samples: Iterable[Sample]) -> dict[int, float] | None:
        """Its value for each prompt, by row index; None if completions do not tell."""
        group, _, last = self.path.rpartition(".")
        kept = list(samples)
        if group:
            room, _, group = group.partition(".")
            if room != "per_group":
                return None
            kept = [sample for sample in kept if sample.get("group") == group]
        if last == "accuracy":
            return prompt_accuracies(kept)
        if last not in _OF_A_SAMPLE:
            return None
        values: dict[int, list[float]] = {}
        for sample in kept:
            values.setdefault(sample["index"], []).append(float(sample[_OF_A_SAMPLE[last]]))
        return {index: mean_and_stderr(found)[0] for index, found in values.items()}

    def show(self, value: float, error: float = math.nan) -> str:
        """The value, with its error where there is one: "66.3 ± 2.7 %"."""
        if math.isnan(value):
            return MISSING
        if self.is_fraction:
            return percent(value, None if math.isnan(error) else error)
        return f"{value:.4g}" if math.isnan(error) else f"{value:.4g} ± {error:.2g}"

    def show_difference(self, value: float, error: float = math.nan) -> str:
        """A signed difference: "+4.7 ± 3.1", in percentage points for a fraction."""
        if math.isnan(value):
            return MISSING
        if self.is_fraction:
            return points(value, None if math.isnan(error) else error)
        return f"{value:+.4g}" if math.isnan(error) else f"{value:+.4g} ± {error:.2g}"


def _at(values: Any, path: str) -> Any:
    """The value under a dotted path; keys may hold dots themselves."""
    if not path or not isinstance(values, Mapping):
        return values if not path else None
    for key in sorted(values, key=len, reverse=True):
        if path == key:
            return values[key]
        if path.startswith(f"{key}."):
            return _at(values[key], path[len(key) + 1 :])
    return None


def _names(evaluation: Mapping[str, Any]) -> list[str]:
    numbers = [name for name, value in evaluation.items() if not math.isnan(_number(value))]
    plain = [name for name in numbers if not name.startswith("num_") and not name.endswith("_stderr")]
    return [name for name in plain if name not in ("step", "seconds", "unscored", "failed")] + [
        f"pass@{k}" for k in evaluation.get("pass_at_k") or {}
    ]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)
