"""What an evaluation is asked for and what it returns: settings, statistics over prompts, paired comparison.

Needs neither torch nor transformers, so that recipes can be checked and reports read without them.
pass@k is left out; the samples carry what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from posttrain.errors import ConfigError

Sample = dict[str, Any]


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate: the `eval` block of a recipe. `at_start` and `every_steps` say when, and are the caller's."""

    num_prompts: int | None = 128  # a seeded random choice of the evaluation set; None = every row
    num_generations: int = 1  # completions per prompt
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0  # in (0, 1]; 1 = off
    max_new_tokens: int | None = None  # None = the caller fills in rollout.max_completion_length
    batch_size: int = 32  # completions generated at once on each process, rounded down to whole prompts
    seed: int = 0  # chooses prompts, their order and every sampled token
    at_start: bool = True
    every_steps: int | None = None  # optimizer steps; None = only at the start and the end
    time_budget_seconds: float | None = None  # stop after the batch that passes it; None = no limit

    def __post_init__(self) -> None:
        """Refuse values that cannot be used, each by its field name."""
        for name in ("num_prompts", "num_generations", "max_new_tokens", "batch_size", "every_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError("out of range", where=f"eval.{name}", got=value, allowed="integer >= 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                "out of range", where="eval.temperature", got=self.temperature, allowed="float >= 0; 0 = greedy"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError("out of range", where="eval.top_p", got=self.top_p, allowed="float in (0, 1]")
        if self.time_budget_seconds is not None and not self.time_budget_seconds > 0:
            raise ConfigError(
                "out of range",
                where="eval.time_budget_seconds",
                got=self.time_budget_seconds,
                allowed="float > 0 or null",
            )
        if self.num_generations > 1 and self.temperature == 0:
            raise ConfigError(
                "greedy decoding gives every completion of a prompt the same text",
                where="eval.num_generations",
                got=self.num_generations,
                fix="Set eval.temperature above 0, or eval.num_generations to 1",
            )


@dataclass(frozen=True, kw_only=True)
class Score:
    """Statistics of a set of completions; NaN where nothing was scored or a spread needs two prompts."""

    num_prompts: int  # prompts evaluated
    num_samples: int  # completions generated
    num_scored_prompts: int  # prompts with at least one verdict: the n of accuracy and its standard error
    unscored: int  # completions the verifier gave no verdict on; left out of the accuracy
    accuracy: float  # mean over prompts of the prompt's mean verdict, in [0, 1]
    accuracy_stderr: float  # see `mean_and_stderr`
    mean_length: float  # tokens, the stop token included
    truncated_fraction: float  # completions that reached max_new_tokens without a stop token


@dataclass(frozen=True, kw_only=True)
class EvalResult(Score):
    """One evaluation: the score of all completions, of each group, and the completions themselves."""

    num_requested: int  # prompts that were to be evaluated; more than num_prompts if `partial`
    num_tokens: int  # completion tokens generated
    seconds: float
    partial: bool  # the time budget ended it early: num_prompts of num_requested, a random subset of them
    per_group: dict[str, Score] = field(default_factory=dict)  # empty if the data has no `group` column
    samples: list[Sample] = field(default_factory=list)

    def to_dict(self, *, with_samples: bool = True) -> dict[str, Any]:
        """The result as plain JSON values; NaN becomes None.

        Args:
            with_samples: False leaves out `samples`, which hold every prompt and completion.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        samples = values.pop("samples")
        values["per_group"] = {name: _finite(asdict(score)) for name, score in self.per_group.items()}
        values = _finite(values)
        return {**values, "samples": [dict(sample) for sample in samples]} if with_samples else values


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean of n values and the standard error of that mean, sqrt(sum((x - mean)^2) / (n * (n - 1))).

    Args:
        values: one number a prompt; for one completion each, 0 or 1.

    Returns:
        (mean, standard error); (NaN, NaN) for no value, NaN error for one. All values equal gives error 0, which for
        0/1 verdicts says that the sample saw no other outcome, not that the true rate is known exactly.
    """
    count = len(values)
    if count == 0:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)))


def prompt_accuracies(samples: Iterable[Sample]) -> dict[int, float]:
    """Mean verdict of each prompt, by row index; prompts without a verdict are left out."""
    verdicts: dict[int, list[float]] = {}
    for sample in samples:
        if sample["correct"] is not None:
            verdicts.setdefault(sample["index"], []).append(float(sample["correct"]))
    return {index: math.fsum(values) / len(values) for index, values in verdicts.items()}


def summarise(samples: Sequence[Sample]) -> Score:
    """Statistics of completions; the unit of accuracy and of its standard error is the prompt, not the completion."""
    accuracies = prompt_accuracies(samples)
    accuracy, stderr = mean_and_stderr(list(accuracies.values()))
    return Score(
        num_prompts=len({sample["index"] for sample in samples}),
        num_samples=len(samples),
        num_scored_prompts=len(accuracies),
        unscored=sum(sample["correct"] is None for sample in samples),
        accuracy=accuracy,
        accuracy_stderr=stderr,
        mean_length=mean_and_stderr([sample["length"] for sample in samples])[0],
        truncated_fraction=mean_and_stderr([float(sample["truncated"]) for sample in samples])[0],
    )


def summarise_groups(samples: Sequence[Sample]) -> dict[str, Score]:
    """`summarise` for each group, in alphabetical order; empty if the samples carry no group."""
    names = sorted({sample["group"] for sample in samples if sample["group"] is not None})
    return {name: summarise([sample for sample in samples if sample["group"] == name]) for name in names}


def paired_difference(before: Iterable[Sample], after: Iterable[Sample]) -> tuple[float, float, int]:
    """Change of accuracy on the prompts scored in both evaluations, with its standard error.

    The same prompts are compared one by one, so the error is smaller than that of two independent samples.

    Returns:
        (after minus before, standard error of the mean difference, number of prompts); NaN as in `mean_and_stderr`.
    """
    first, second = prompt_accuracies(before), prompt_accuracies(after)
    differences = [second[index] - first[index] for index in first if index in second]
    return (*mean_and_stderr(differences), len(differences))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
