"""A path study as a page: tables over paths and seeds, curves, and metric by metric what it says about retraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.evaluation.statistics import Interval, t_interval
from posttrain.methods.unlearning_paths.findings import (
    DENIES,
    NOT_THERE,
    SUPPORTS,
    UNKNOWN,
    Outcome,
    Verdict,
    behaves_like,
    curve,
    divergence,
    forget_scores,
    quality_verdict,
    recency,
    relearning_verdict,
)
from posttrain.methods.unlearning_paths.plan import FORGET, Path, PathPlan
from posttrain.reports.document import Document, Image, Section, Table
from posttrain.reports.plots import Panel, curves

# Of the unlearning suite: what is set against the retrained model's.
SUITE = ("probability", "truth_ratio", "extraction_strength", "exact_memorisation", "rouge_l_recall")
_COLUMNS = {
    "initial_logp": "before",
    "final_logp": "after",
    "forget_score": "forget score",
    "squeeze_paraphrases": "squeeze index, paraphrases",
    "kept_change": "change of the other sets",
    "steps_to_retrained": "steps to the retrained model's level",
    "accuracy": "accuracy after",
    "accuracy_change": "its change",
}


@dataclass(frozen=True)
class Variant:
    """One algorithm at one learning rate, with what was measured of each path."""

    algorithm: str
    learning_rate: float
    outcomes: dict[str, Outcome]  # path -> what was measured
    events: dict[str, list[Any]]  # path -> log of each seed

    @property
    def name(self) -> str:
        """ "npo, learning rate 1e-05"."""
        return f"{self.algorithm}, learning rate {self.learning_rate:g}"

    def table(self, number: str, paths: Sequence[Path]) -> dict[str, dict[int, float]]:
        """path -> seed -> value."""
        return {path.name: self.outcomes[path.name].column(number) for path in paths}


@dataclass(frozen=True)
class Study:
    """A finished study."""

    plan: PathPlan
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    num_rows: int  # of the forget set
    probe_every: tuple[int, int]  # steps between two measurements: of unlearning, of relearning
    tolerance: float

    @property
    def placed(self) -> list[Path]:
        """The paths with a place of the forget set, without joint training."""
        return [path for path in self.plan.paths if path.position]

    @property
    def last(self) -> list[str]:
        """The paths that learnt the forget set last."""
        return [path.name for path in self.placed if path.position == len(path.order)]


def verdicts(study: Study, variant: Variant, path: Path) -> list[Verdict]:
    """Metric by metric, whether the unlearned model behaves like the retrained one."""
    outcome, found = variant.outcomes[path.name], []
    probes = list(study.plan.values["data"]["probes"])
    for kind in [FORGET, f"{FORGET}_paraphrases", *(name for name in probes if name != FORGET)]:
        own = _final(variant, study, path, kind)
        other = {seed: ends[kind] for seed, ends in outcome.retrained.items() if kind in ends}
        if own and other:
            told = kind.replace("_", " ")
            found.append(behaves_like(f"log-probability of {told}", own, other, tolerance=study.tolerance))
    for metric in [*(f"forget.{name}" for name in SUITE), "membership_auc"]:
        pair = [_known(part, metric) for part in (outcome.suite, outcome.retrained_suite)]
        if all(pair):
            found.append(behaves_like(metric.replace("_", " "), *pair, tolerance=study.tolerance))
    qualities = {seed: part.get("forget_quality") for seed, part in outcome.suite.items() if part}
    if qualities:
        found.append(quality_verdict(qualities, num_rows=study.num_rows))
    if outcome.steps:
        found.append(relearning_verdict(outcome.steps, outcome.retrained_steps, probe_every=study.probe_every[1]))
    return found


def _known(part: Mapping[int, Mapping[str, float | None]], metric: str) -> dict[int, float]:
    return {seed: value for seed, found in part.items() if (value := found.get(metric)) is not None}


def _final(variant: Variant, study: Study, path: Path, kind: str) -> dict[int, float]:
    """Seed -> last measurement of a set while unlearning."""
    logs = zip(study.seeds, variant.events[path.name], strict=True)
    ends = {seed: curve(events, f"answers/{kind}_logp") for seed, events in logs}
    return {seed: points[-1][1] for seed, points in ends.items() if points}


# ---- tables ----


def numbers(study: Study) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
    return {
        "seeds": list(study.seeds),
        "paths": {path.name: list(path.order) for path in study.plan.paths},
        "tolerance": study.tolerance,
        "variants": [
            {
                "algorithm": variant.algorithm,
                "learning_rate": variant.learning_rate,
                "paths": {path.name: _numbers_of(study, variant, path) for path in study.plan.paths},
                "spread": _spread(study, variant),
                "recency": _recency(study, variant),
            }
            for variant in study.variants
        ],
    }


def _numbers_of(study: Study, variant: Variant, path: Path) -> dict[str, Any]:
    outcome = variant.outcomes[path.name]
    return {
        "seeds": {str(seed): found for seed, found in outcome.numbers.items()},
        "retrained": {str(seed): found for seed, found in outcome.retrained.items()},
        "steps_to_relearn": {str(seed): steps for seed, steps in outcome.steps.items()},
        "steps_of_the_retrained": {str(seed): steps for seed, steps in outcome.retrained_steps.items()},
        "suite": {str(seed): found for seed, found in outcome.suite.items()},
        "behaves_like_retrained": {item.metric: [item.word, item.why] for item in verdicts(study, variant, path)},
    }


def _spread(study: Study, variant: Variant) -> dict[str, Any] | None:
    if len(study.placed) < 2:
        return None
    found = divergence(variant.table("forget_score", study.placed))
    interval = vars(found.spread)
    return {"over_paths": interval, "over_seeds": found.seed_spread, "p_value": found.p_value, "told": found.told}


def _recency(study: Study, variant: Variant) -> dict[str, Any] | None:
    if not 0 < len(study.last) < len(study.placed):
        return None
    interval, least, count = recency(variant.table("forget_score", study.placed), study.last)
    return {"effect": vars(interval), "seeds_in_which_last_is_least": least, "seeds": count}


def page(study: Study) -> Document:
    """The report."""
    sections = [section for variant in study.variants for section in _variant_sections(study, variant)]
    paths = [[path.name, " → ".join(path.order) if path.position else f"{', '.join(path.order)} together"]
             for path in study.plan.paths]  # fmt: skip
    lead = [
        f"{len(study.seeds)} {'seed' if len(study.seeds) == 1 else 'seeds'}: {', '.join(map(str, study.seeds))}. "
        "Log-probabilities are in nats a token; ± is the half width of a 95 % interval over seeds.",
        "Unlearning has the same rows in the same order, the same steps and the same schedule for every path.",
    ]
    first = Section("Paths", table=Table(["path", "learnt in this order"], paths, is_text=True))
    return Document("Unlearning along different paths", _answer(study), lead, [first, *sections])


def _answer(study: Study) -> str:
    told = []
    for variant in study.variants:
        parts = []
        if (spread := _spread(study, variant)) is not None:
            parts.append(f"forget scores of the paths {spread['over_paths']['mean']:.3g} apart ({spread['told']})")
        if (found := _recency(study, variant)) is not None:
            count = f"{found['seeds_in_which_last_is_least']} of {found['seeds']} seeds"
            parts.append(f"learnt last forgets least in {count}")
        told.append(f"{variant.name}: {', '.join(parts) or 'one path'}")
    return ". ".join(told) + "."


def _variant_sections(study: Study, variant: Variant) -> list[Section]:
    columns = _columns(study, variant)
    header = ["path", *columns.values()]
    rows = [[path.name, *(_cell(variant.outcomes[path.name].column(name)) for name in columns)]
            for path in study.plan.paths]  # fmt: skip
    for row, path in zip(rows, study.plan.paths, strict=True):
        short = sum(variant.outcomes[path.name].column(NOT_THERE).values())
        if short:
            row[1 + list(columns).index("steps_to_retrained")] += f"; at least, not there in {short:g}"
    if study.plan.relearn is not None:
        header += ["steps to relearn", "the retrained model's"]
        for row, path in zip(rows, study.plan.paths, strict=True):
            outcome = variant.outcomes[path.name]
            row += [_steps(outcome.steps), _steps(outcome.retrained_steps)]
    return [
        Section(f"Result: {variant.name}", table=Table(header, rows), points=_points(study, variant)),
        Section(f"On the way: {variant.name}", [_ON_THE_WAY], _way_table(study, variant)),
        Section(f"Squeeze: {variant.name}", [_SQUEEZE], _squeeze_table(study, variant)),
        _claims(study, variant),
        Section(f"Curves: {variant.name}", images=_images(study, variant)),
    ]


def _columns(study: Study, variant: Variant) -> dict[str, str]:
    """The columns in which some path has a number; of further tasks, too."""
    tasks = list(study.plan.values["data"].get("eval_tasks") or {})
    further = {f"accuracy_change_{name}": f"change on {name}" for name in tasks}
    outcomes = variant.outcomes.values()
    return {
        name: title
        for name, title in {**_COLUMNS, **further}.items()
        if any(outcome.column(name) for outcome in outcomes)
    }


_SQUEEZE = (
    "Change of a set's log-probability over that of the forget set's answers: 1 = falls as they do, 0 = stays, "
    "negative = rises while they fall. Paraphrases at 1 mean that the fact went, at 0 that only the wording did."
)


_ON_THE_WAY = "Forget score after so many steps, mean over seeds. Which path is slowest may change on the way."
_MOST_STEPS = 8  # columns of that table


def _way_table(study: Study, variant: Variant) -> Table:
    scores = {path.name: [forget_scores(events, forget=FORGET) for events in variant.events[path.name]]
              for path in study.plan.paths}  # fmt: skip
    steps = sorted(set.intersection(*(set(found) for runs in scores.values() for found in runs)))[1:]
    shown = steps if len(steps) <= _MOST_STEPS else [steps[round(place * (len(steps) - 1) / (_MOST_STEPS - 1))]
                                                     for place in range(_MOST_STEPS)]  # fmt: skip
    rows = [
        [name, *(f"{math.fsum(found[step] for found in runs) / len(runs):.3g}" for step in shown)]
        for name, runs in scores.items()
    ]
    return Table(["path", *(f"step {step}" for step in shown)], rows)


def _squeeze_table(study: Study, variant: Variant) -> Table:
    kinds = ["paraphrases", *(name for name in study.plan.values["data"]["probes"] if name != FORGET)]
    rows = [
        [path.name, *(_cell(variant.outcomes[path.name].column(f"squeeze_{kind}")) for kind in kinds)]
        for path in study.plan.paths
    ]
    return Table(["path", *(kind.replace("_", " ") for kind in kinds)], rows)


def _points(study: Study, variant: Variant) -> list[str]:
    found = ["before: mean log-probability of the forget set's answers before unlearning; a path that starts high may "
             "forget slowly for that alone, since its gradients are small."]  # fmt: skip
    if (spread := _spread(study, variant)) is not None:
        p_value = spread["p_value"]
        test = (
            "no test (three seeds and paths are needed)" if p_value is None else f"Friedman's test p = {p_value:.2g}"
        )
        over = Interval(**spread["over_paths"])
        found.append(
            f"Forget scores: max - min over paths {_shown(over)}, max - min over seeds {spread['over_seeds']:.3g}: "
            f"{spread['told']} ({test})."
        )
    if (last := _recency(study, variant)) is not None:
        effect = Interval(**last["effect"])
        least = f"{last['seeds_in_which_last_is_least']} of {last['seeds']} seeds"
        which = "the one that learnt it last, which forgets" if len(study.last) == 1 else (
            f"the {len(study.last)} that learnt it last, which all forget"
        )  # fmt: skip
        found.append(f"Recency: the other paths forget {_shown(effect)} more than {which} least in {least}.")
    return found


def _claims(study: Study, variant: Variant) -> Section:
    rows, words = [], {SUPPORTS: 0, DENIES: 0, UNKNOWN: 0}
    for path in study.plan.paths:
        for item in verdicts(study, variant, path):
            words[item.word] += 1
            difference = "–" if item.difference is None else _shown(item.difference)
            rows.append([path.name, item.metric, difference, item.word, item.why])
    counted = ", ".join(f"{word}: {count}" for word, count in words.items())
    text = f'The claim "behaves like the retrained model", metric by metric. {counted}.'
    header = ["path", "metric", "unlearned - retrained", "this run", "because"]
    return Section(f"Like retrained? {variant.name}", [text], Table(header, rows, is_text=True))


def _images(study: Study, variant: Variant) -> list[Image]:
    probes = list(study.plan.values["data"]["probes"])
    kinds = [FORGET, f"{FORGET}_paraphrases", *(name for name in probes if name != FORGET)]
    panels = [
        Panel(kind, f"{kind.replace('_', ' ')}: {variant.name}", "log-probability of the answers, nats a token",
              ((f"answers/{kind}_logp", "log-probability"),))
        for kind in kinds
    ]  # fmt: skip
    drawn = curves(variant.events, panels)
    stem = f"{variant.algorithm}-{variant.learning_rate:g}"
    return [Image(f"{stem}-{name}", plot.png, plot.alt) for name, plot in drawn.items()]


def _cell(values: Mapping[int, float]) -> str:
    finite = [value for value in values.values() if math.isfinite(value)]
    if len(finite) < len(values):
        return f"not finite in {len(values) - len(finite)} of {len(values)} seeds"
    return _shown(t_interval(finite)) if finite else "–"


def _shown(interval: Interval) -> str:
    if math.isnan(interval.mean):
        return "–"
    half = (interval.high - interval.low) / 2
    return f"{interval.mean:.3g}" if math.isnan(half) else f"{interval.mean:.3g} ± {half:.2g}"


def _steps(found: Mapping[int, int | None]) -> str:
    known = sorted(steps for steps in found.values() if steps is not None)
    if not known:
        return "not back"
    told = f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return told if len(known) == len(found) else f"{told}; not back in {len(found) - len(known)}"
