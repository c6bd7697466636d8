"""What can be said about several variants: their final numbers, the spread over seeds, paired tests, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from posttrain.errors import ConfigError
from posttrain.evaluation.statistics import Interval, paired_interval, t_interval
from posttrain.reports.measure import Measure
from posttrain.reports.run_report import AFTER
from posttrain.reports.variants import Run, Variant

# Costs in the order of the table; the counters are totals that the training log holds.
COUNTERS = ("prompts", "generated tokens", "demonstrations")
COSTS = ("optimizer steps", *COUNTERS, "training time", "evaluation time")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number of a variant: the mean over its seeds, or of one seed with its error over prompts; NaN = unknown."""

    mean: float
    stderr: float
    low: float  # smallest and largest seed
    high: float
    num_seeds: int
    num_prompts: int  # of one evaluation

    @property
    def over(self) -> str:
        """What the standard error is over."""
        if self.num_seeds == 0:
            return ""
        return f"{self.num_seeds} seeds" if self.num_seeds > 1 else f"{self.num_prompts} prompts"


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A variant minus the baseline, paired; `interval` is None where they could not be paired, and `note` says why."""

    variant: str
    baseline: str
    interval: Interval | None = None
    over: str = ""  # "seeds" or "prompts": what was paired
    note: str = ""
    adjusted_p: float = math.nan  # Holm, over all tests of the comparison

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the confidence interval."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Variants side by side.

    Args:
        variants: with names that differ; at least one.
        measure: the number they are compared by.
        baseline_name: the variant the others are tested against; None = the first.

    Raises:
        ConfigError: two variants of one name, an unknown baseline, a number that no evaluation has.
    """

    variants: tuple[Variant, ...]
    measure: Measure = Measure()
    baseline_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ConfigError("two variants have the same name", got=names, fix="Name them: NAME=FOLDER")
        if self.baseline_name is not None and self.baseline_name not in names:
            allowed = "one of: " + ", ".join(names)
            raise ConfigError("no variant of this name", where="--baseline", got=self.baseline_name, allowed=allowed)
        self.measure.require([run.after for variant in self.variants for run in variant.runs if run.after is not None])

    @property
    def baseline(self) -> Variant:
        """The variant the others are tested against."""
        return next((variant for variant in self.variants if variant.name == self.baseline_name), self.variants[0])

    @cached_property
    def before(self) -> dict[str, Spread]:
        """The number before training, by variant; of the seeds that have a final one."""
        return {
            variant.name: self._spread(variant, [run.before for run in variant.distinct]) for variant in self.variants
        }

    @cached_property
    def final(self) -> dict[str, Spread]:
        """The number after training, by variant."""
        return {
            variant.name: self._spread(variant, [run.after for run in variant.distinct]) for variant in self.variants
        }

    @cached_property
    def changes(self) -> dict[str, tuple[float, float]]:
        """(after minus before, standard error) by variant; over seeds, or over prompts for one seed."""
        return {variant.name: self._change(variant) for variant in self.variants}

    @cached_property
    def tests(self) -> list[PairedTest]:
        """One for each variant but the baseline, with p-values adjusted for their number."""
        found = [self._test(variant) for variant in self.variants if variant.name != self.baseline.name]
        p_values = {test.variant: test.interval.p_value for test in found if test.interval is not None}
        adjusted = holm({name: value for name, value in p_values.items() if not math.isnan(value)})
        return [replace(test, adjusted_p=adjusted.get(test.variant, math.nan)) for test in found]

    @cached_property
    def costs(self) -> dict[str, dict[str, float]]:
        """Mean cost over the seeds, by variant and name of `COSTS`; NaN where no run recorded it."""
        return {variant.name: _mean_costs([run_costs(run) for run in _counted(variant)]) for variant in self.variants}

    def ranked(self) -> list[Variant]:
        """Variants with a final number, the highest first."""
        known = [variant for variant in self.variants if not math.isnan(self.final[variant.name].mean)]
        return sorted(known, key=lambda variant: -self.final[variant.name].mean)

    def example_runs(self) -> list[tuple[Variant, Run]]:
        """A finished run of each variant, of the same seeds where they have common ones."""
        shown: list[tuple[Variant, Run]] = []
        for variant in self.variants:
            if variant.distinct:
                first = shown[0][1] if shown else None
                same = [run for run in variant.distinct if first is not None and run.seeds == first.seeds]
                shown.append((variant, (same or list(variant.distinct))[0]))
        return shown

    def _spread(self, variant: Variant, evaluations: Sequence[Mapping[str, Any] | None]) -> Spread:
        pairs = [self.measure.read(item) for item in evaluations]
        values = [value for value, _ in pairs if not math.isnan(value)]
        interval = t_interval(values)
        prompts = [item["num_scored_prompts"] for item in evaluations if item and "num_scored_prompts" in item]
        return Spread(
            mean=interval.mean,
            stderr=interval.stderr if len(values) > 1 else next((e for v, e in pairs if not math.isnan(v)), math.nan),
            low=min(values, default=math.nan),
            high=max(values, default=math.nan),
            num_seeds=len(values),
            num_prompts=prompts[0] if prompts else 0,
        )

    def _change(self, variant: Variant) -> tuple[float, float]:
        runs = variant.distinct
        if len(runs) == 1:
            samples = [runs[0].folder.read_samples(kind) for kind in ("before", AFTER)]
            by_prompt = [self.measure.by_prompt(found) for found in samples]
            if all(by_prompt):
                interval = paired_interval(*[dict(found or {}) for found in by_prompt])
                return interval.mean, interval.stderr
        differences = [self.measure.read(run.after)[0] - self.measure.read(run.before)[0] for run in runs]
        interval = t_interval([value for value in differences if not math.isnan(value)])
        return interval.mean, interval.stderr

    def _test(self, variant: Variant) -> PairedTest:
        """Paired over seeds where both variants have two or more in common, over prompts otherwise."""
        base = self.baseline
        result = partial(PairedTest, variant=variant.name, baseline=base.name)
        missing = [other.name for other in (base, variant) if not other.distinct]
        if missing:
            return result(note=f"no finished run of {' and '.join(missing)}")
        pairs = paired_runs(base, variant)
        if not pairs:
            return result(note="no seed in common")
        values = [(self.measure.read(first.after)[0], self.measure.read(second.after)[0]) for first, second in pairs]
        known = [pair for pair in values if not any(map(math.isnan, pair))]
        if len(known) > 1:
            return result(over="seeds", interval=t_interval([second - first for first, second in known]))
        test = self._test_over_prompts(*pairs[0], result)
        if len(base.distinct) + len(variant.distinct) > 2 and test.interval is not None:
            owner = variant if len(variant.distinct) > 1 else base
            shared = owner.label(pairs[0][1] if owner is variant else pairs[0][0])
            return replace(test, note=f"only {shared}, the one that both have")
        return test

    def _test_over_prompts(self, first: Run, second: Run, result: Callable[..., PairedTest]) -> PairedTest:
        samples = [run.folder.read_samples(AFTER) for run in (first, second)]
        if not all(samples):
            return result(note="the completions of one variant are missing")
        asked = [{sample["index"]: repr(sample["prompt"]) for sample in found} for found in samples]
        common = {index for index, prompt in asked[0].items() if asked[1].get(index) == prompt}
        base, other = (self.measure.by_prompt(found) for found in samples)
        if base is None or other is None:
            return result(note=f"{self.measure.name} is not known prompt by prompt, and there is one seed")
        pair = result()
        without = [name for name, known in ((pair.baseline, base), (pair.variant, other)) if not known]
        if without:
            return result(note=f"no completion of {' and '.join(without)} tells {self.measure.name}")
        base, other = ({index: known[index] for index in known if index in common} for known in (base, other))
        interval = paired_interval(base, other)
        if interval.num_values < 2:
            return result(note="the variants were evaluated on different prompts")
        shared = first.seeds.keys() & second.seeds.keys()
        differ = sorted(name for name in shared if first.seeds[name] != second.seeds[name])
        note = f"the two runs have different seeds ({', '.join(differ)})" if differ else ""
        return result(over="prompts", interval=interval, note=note)


def paired_runs(first: Variant, second: Variant) -> list[tuple[Run, Run]]:
    """Runs of the same seeds; a single run of each variant is a pair whatever its seeds.

    Two runs belong together if they agree in every seed that varies within either variant and that both variants have.
    """
    if len(first.distinct) == len(second.distinct) == 1:
        return [(first.distinct[0], second.distinct[0])]
    names = [
        name
        for name in dict.fromkeys([*first.varying, *second.varying])
        if all(name in run.seeds for run in (*first.distinct, *second.distinct))
    ]
    if not names:
        return []

    def seeds_of(run: Run) -> tuple[Hashable, ...]:
        return tuple(run.seeds[name] for name in names)

    others = {seeds_of(run): run for run in second.distinct}
    return [(run, others[seeds_of(run)]) for run in first.distinct if seeds_of(run) in others]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for several tests by Holm's method: the chance of any false finding stays below the level.

    Args:
        p_values: by name, in [0, 1].

    Returns:
        By name: the i-th smallest of m times m - i + 1, at least the one before it, at most 1.
    """
    adjusted, highest = {}, 0.0
    for place, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, value * (len(p_values) - place)))
        adjusted[name] = highest
    return adjusted


def run_costs(run: Run) -> dict[str, float]:
    """What one run cost, by the names of `COSTS`; NaN where not recorded. Earlier stages are not counted."""
    recorded = run.folder.costs()
    counted = any(name.startswith("cost/") for event in run.events for name in event)
    costs = {name: float(recorded.get(name, math.nan)) for name in COSTS}
    # A run that counts its costs and never met one had none of it.
    return {
        name: 0.0 if counted and name in COUNTERS and math.isnan(value) else value for name, value in costs.items()
    }


def accuracy_against(run: Run, measure: Measure, counter: str | None) -> list[tuple[float, float, float]]:
    """(steps or a counter of the log, value, standard error over prompts) of every evaluation, in order of steps.

    Args:
        run: with evaluations during training or at its ends.
        measure: what to read.
        counter: cumulative metric of the log; None = optimizer steps. The last log up to the evaluation counts.
    """
    found = []
    for item in sorted(run.evals.values(), key=lambda entry: entry["step"]):
        place = float(item["step"]) if counter is None else _counter_at(run, counter, item["step"])
        value, error = measure.read(item)
        if not math.isnan(place) and not math.isnan(value):
            found.append((place, value, error))
    return found


def _counter_at(run: Run, counter: str, step: int) -> float:
    if not any(counter in event for event in run.events):
        return math.nan
    passed = [event[counter] for event in run.events if counter in event and event["step"] <= step]
    return float(passed[-1]) if passed else (0.0 if step == 0 else math.nan)


def _counted(variant: Variant) -> Sequence[Run]:
    return variant.distinct or variant.runs


def _mean_costs(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for name in COSTS:
        known = [cost[name] for cost in costs if not math.isnan(cost[name])]
        means[name] = math.fsum(known) / len(known) if known else math.nan
    return means
