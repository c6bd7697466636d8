"""What an evaluation is asked for and what it returns: settings, statistics over prompts, pass@k, paired comparison.

Needs neither torch nor transformers, so that recipes can be checked and reports read without them.
pass@k: arXiv 2107.03374, section 2.1, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
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
class PassAtK:
    """Estimate of the share of prompts that at least one of k completions solves."""

    value: float  # in [0, 1]; NaN if every prompt was left out
    stderr: float  # over prompts, see `mean_and_stderr`
    num_prompts: int  # prompts in the mean: those with at least k verdicts
    num_left_out: int  # prompts with fewer than k verdicts, because the verifier gave none on the others


@dataclass(frozen=True, kw_only=True)
class Score:
    """Statistics of a set of completions; NaN where nothing was scored or a spread needs two prompts."""

    num_prompts: int  # prompts evaluated
    num_samples: int  # completions generated
    num_scored_prompts: int  # prompts with at least one verdict: the n of accuracy and its standard error
    unscored: int  # completions without a verdict, left out of the accuracy: not applicable, or the verifier failed
    failed: int = 0  # of the unscored, those on which the verifier itself raised, hung or died
    accuracy: float  # mean over prompts of the prompt's mean verdict, in [0, 1]
    accuracy_stderr: float  # see `mean_and_stderr`
    mean_length: float  # tokens, the stop token included
    truncated_fraction: float  # completions that reached max_new_tokens without a stop token
    # k -> pass@k for the powers of two up to the completions per prompt, and that number; empty with one per prompt.
    pass_at_k: dict[int, PassAtK] = field(default_factory=dict)


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
        values = _plain({item.name: getattr(self, item.name) for item in fields(self) if item.name != "samples"})
        return {**values, "samples": [dict(sample) for sample in self.samples]} if with_samples else values


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


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """Chance that k of a prompt's completions, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k), which is an unbiased estimate of the chance for k new completions.

    Args:
        num_samples: n, completions of the prompt with a verdict.
        num_correct: c, those among them that are correct.
        k: completions drawn, from 1 to n.

    Returns:
        In [0, 1], from exact integers; 1 if fewer than k completions are wrong.

    Raises:
        ValueError: if not 1 <= k <= n, or not 0 <= c <= n.

    Source: arXiv 2107.03374, equation 1.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"needs 1 <= k <= n and 0 <= c <= n, got k = {k}, n = {num_samples}, c = {num_correct}")
    draws = math.comb(num_samples, k)
    return (draws - math.comb(num_samples - num_correct, k)) / draws


def pass_at_k_sizes(num_generations: int) -> list[int]:
    """The k that are reported for n completions per prompt: powers of two up to n, and n; none for n = 1."""
    if num_generations < 2:
        return []
    powers = [1 << exponent for exponent in range(num_generations.bit_length())]
    return [*powers, *([num_generations] if powers[-1] != num_generations else [])]


def pass_at_k_scores(samples: Iterable[Sample]) -> dict[int, PassAtK]:
    """pass@k over prompts with its standard error, for each k of `pass_at_k_sizes`.

    A completion without a verdict is taken as never drawn: its prompt counts with the n completions that have one. A
    prompt with fewer than k of them says nothing about k; it is left out of that mean and counted. So pass@1 is the
    accuracy, and means of different k may be over different prompts.

    Args:
        samples: completions; n is the largest number of them that a prompt has, scored or not.
    """
    counts: dict[int, list[int]] = {}  # row index -> [completions, with a verdict, correct]
    for sample in samples:
        count = counts.setdefault(sample["index"], [0, 0, 0])
        count[0] += 1
        count[1] += sample["correct"] is not None
        count[2] += bool(sample["correct"])
    scores = {}
    for k in pass_at_k_sizes(max((count[0] for count in counts.values()), default=0)):
        values = [pass_at_k(scored, correct, k=k) for _, scored, correct in counts.values() if scored >= k]
        value, stderr = mean_and_stderr(values)
        scores[k] = PassAtK(
            value=value, stderr=stderr, num_prompts=len(values), num_left_out=len(counts) - len(values)
        )
    return scores


def prompt_accuracies(samples: Iterable[Sample]) -> dict[int, float]:
    """Mean verdict of each prompt, by row index; prompts without a verdict are left out."""
    verdicts: dict[int, list[float]] = {}
    for sample in samples:
        if sample["correct"] is not None:
            verdicts.setdefault(sample["index"], []).append(float(sample["correct"]))
    return {index: math.fsum(values) / len(values) for index, values in verdicts.items()}


def missing_verdicts(item: Mapping[str, Any]) -> str:
    """One sentence about completions without a verdict, for reports; "" if there are none.

    Args:
        item: a `Score` as it is recorded.
    """
    unscored, failed = int(item.get("unscored") or 0), int(item.get("failed") or 0)
    if not unscored:
        return ""
    why = f": it failed on {failed} and did not apply to {unscored - failed}" if failed else ""
    return f"the verifier gave no verdict on {unscored} completions{why}."


def summarise(samples: Sequence[Sample]) -> Score:
    """Statistics of completions; the unit of accuracy and of its standard error is the prompt, not the completion."""
    accuracies = prompt_accuracies(samples)
    accuracy, stderr = mean_and_stderr(list(accuracies.values()))
    return Score(
        num_prompts=len({sample["index"] for sample in samples}),
        num_samples=len(samples),
        num_scored_prompts=len(accuracies),
        unscored=sum(sample["correct"] is None for sample in samples),
        failed=sum(sample.get("failed") is not None for sample in samples),
        accuracy=accuracy,
        accuracy_stderr=stderr,
        mean_length=mean_and_stderr([sample["length"] for sample in samples])[0],
        truncated_fraction=mean_and_stderr([float(sample["truncated"]) for sample in samples])[0],
        pass_at_k=pass_at_k_scores(samples),
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


def _plain(value: Any) -> Any:
    """JSON's types: a dataclass becomes a dict, keys become text, NaN and infinity None."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
