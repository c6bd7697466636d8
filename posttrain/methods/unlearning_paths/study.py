"""`posttrain study unlearning-paths R`: one forget set at every place of the training, unlearned alike, compared.

Every stage is an ordinary stage of an ordinary run, in a folder of its seed below `trainer.output_dir`. What is
finished is not repeated, so a study that was stopped, or is given further seeds, goes on.

paths.json            every number by algorithm, learning rate, path and seed
REPORT.md, report.html, plots/    tables, curves, and which claims are borne out
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

from posttrain.config.loader import load
from posttrain.config.source import read_recipe
from posttrain.errors import ConfigError, DataError
from posttrain.methods.unlearning_paths.findings import Outcome, curve, level_steps, stage_numbers, steps_to_return
from posttrain.methods.unlearning_paths.page import Study, Variant, numbers, page
from posttrain.methods.unlearning_paths.plan import FORGET, FRACTION, PathPlan, relearn_name, unlearn_name
from posttrain.methods.unlearning_paths.suite import evaluate_unlearning
from posttrain.reports.records import read_metrics, write_json
from posttrain.reports.run_report import RunFolder
from posttrain.run import run

PRESET = "unlearning_paths"
NUMBERS = "paths.json"
TOLERANCE = 0.1  # nats a token; of shares: a tenth


def study_unlearning_paths(
    recipe: str | File,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    train: bool = True,
    suite: bool = True,
    tolerance: float = TOLERANCE,
) -> tuple[Study, File]:
    """Train what is not finished yet, then report.

    Args:
        recipe: a recipe with `stages: {preset: unlearning_paths, ...}`.
        overrides: as for training.
        seeds: of the training, and of the first weights of a tiny model; None = the recipe's `trainer.seed`.
        train: false only reports on what is there.
        suite: also measure every model with the unlearning suite, whose results are kept, too.
        tolerance: difference to the retrained model that counts as alike, in nats a token and in shares.

    Returns:
        The study, and the path of the report.

    Raises:
        ConfigError: another recipe, or seeds that come twice. DataError: a stage is missing.
    """
    values, source = read_recipe(recipe, list(overrides))
    block = values.get("stages")
    if not isinstance(block, dict) or block.get("preset") != PRESET:
        fix = f"Write stages: {{preset: {PRESET}, ...}}"
        raise ConfigError("the recipe is no path study", where=source.where(("stages",)), fix=fix)
    config = load(recipe, list(overrides))
    plan, root = PathPlan(values), File(str(config.trainer.output_dir))
    chosen = tuple(seeds if seeds is not None else [int(config.trainer.seed)])
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError("each seed once", where="--seeds", got=list(chosen), allowed="one or more seeds")
    for seed in chosen:
        complete = [*overrides, *_seeded(values, seed), f"trainer.output_dir={_folder(root, seed).as_posix()}"]
        if train:
            run(recipe, complete)
        if suite and train:
            _measure_all(plan, recipe, complete, _folder(root, seed))
    study = _read(plan, chosen, root, tolerance)
    return study, _write(root, study)


def _seeded(values: Mapping[str, Any], seed: int) -> list[str]:
    model = values.get("model")
    tiny = isinstance(model, dict) and isinstance(model.get("tiny"), dict)
    return [f"trainer.seed={seed}"] + ([f"model.tiny.seed={seed}"] if tiny else [])


def _folder(root: File, seed: int) -> File:
    return root / f"seed-{seed}"


def _measure_all(plan: PathPlan, recipe: str | File, overrides: Sequence[str], root: File) -> None:
    """The unlearning suite on every model that is compared, each set against the two it needs."""
    for path in plan.paths:
        retrained, before = root / path.retrained, root / path.learned
        names = [unlearn_name(algorithm, rate, path.name) for algorithm, rate, own in plan.runs() if own == path]
        for folder, against, other in [
            (retrained, None, None),
            (before, None, retrained),
            *[(root / name, before, retrained) for name in names],
        ]:
            output = folder / "unlearning"
            evaluate_unlearning(
                str(folder),
                recipe=recipe,
                overrides=overrides,
                stage=folder.name,
                output=output,
                against=against and against / "unlearning",
                reference=other and other / "unlearning",
                tables=False,
                renew=True,
            )


# ---- results ----


def _read(plan: PathPlan, seeds: Sequence[int], root: File, tolerance: float) -> Study:
    variants: dict[tuple[str, float], Variant] = {}
    sets = list(plan.values["data"]["probes"])
    fraction = float((plan.relearn or {}).get("fraction", FRACTION))
    for algorithm, rate, path in plan.runs():
        variant = variants.setdefault((algorithm, rate), Variant(algorithm, rate, {}, {}))
        outcome = variant.outcomes.setdefault(path.name, Outcome())
        for seed in seeds:
            folder = _folder(root, seed)
            events = _events(folder / unlearn_name(algorithm, rate, path.name))
            measured = stage_numbers(events, forget=FORGET, sets=sets)
            variant.events.setdefault(path.name, []).append(events)
            outcome.numbers[seed] = measured
            retrained_events = _events(folder / path.retrained)
            retrained = folder / path.retrained
            outcome.retrained[seed] = _ends(retrained_events, sets)
            measured |= level_steps(curve(events, f"answers/{FORGET}_logp"), outcome.retrained[seed][FORGET])
            measured |= _accuracies(folder / path.learned, folder / unlearn_name(algorithm, rate, path.name))
            outcome.suite[seed] = _suite(folder / unlearn_name(algorithm, rate, path.name))
            outcome.retrained_suite[seed] = _suite(retrained)
            if plan.relearn is not None:
                lost = {"initial": measured["initial_logp"], "unlearned": measured["final_logp"], "fraction": fraction}
                name = f"answers/{FORGET}_logp"
                for steps, stage in (
                    (outcome.steps, relearn_name(unlearn_name(algorithm, rate, path.name))),
                    (outcome.retrained_steps, plan.relearn_retrained(path)),
                ):
                    steps[seed] = steps_to_return(curve(_events(folder / stage), name), **lost)
    every = int(plan.unlearn.get("probe_every_steps", 1)), int((plan.relearn or {}).get("probe_every_steps", 1))
    return Study(
        plan, tuple(seeds), tuple(variants.values()), _num_rows(root, seeds[0], variants, plan), every, tolerance
    )


def _num_rows(root: File, seed: int, variants: Mapping[tuple[str, float], Variant], plan: PathPlan) -> int:
    algorithm, rate = next(iter(variants))
    run = RunFolder(_folder(root, seed) / unlearn_name(algorithm, rate, plan.paths[0].name)).read_run()
    return int(run["data"][f"probe {FORGET}"]["rows"])


def _events(folder: File) -> list[dict[str, Any]]:
    events = read_metrics(RunFolder(folder).metrics_path)
    if not (folder / "finished.json").is_file() or not events:
        raise DataError("the stage has not been trained", where=str(folder), fix="Run the study without --report-only")
    return events


def _ends(events: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> dict[str, float]:
    """Last measurement of each set, and of its paraphrases."""
    names = {kind: f"answers/{kind}_logp" for name in sets for kind in (name, f"{name}_paraphrases")}
    return {kind: points[-1][1] for kind, name in names.items() if (points := curve(events, name))}


def _accuracies(learned: File, unlearned: File) -> dict[str, float]:
    """What unlearning did to the accuracy on `data.eval` and `data.eval_tasks`; nothing without them."""
    before, after = (RunFolder(folder).read_evals().get("after", {}) for folder in (learned, unlearned))
    if "accuracy" not in before or "accuracy" not in after:
        return {}
    found = {"accuracy": float(after["accuracy"]), "accuracy_change": float(after["accuracy"] - before["accuracy"])}
    for name, values in before.get("tasks", {}).items():
        found[f"accuracy_change_{name}"] = float(after["tasks"][name]["accuracy"] - values["accuracy"])
    return found


def _suite(folder: File) -> dict[str, float | None]:
    """Metrics of the unlearning suite by name; none where it was not run."""
    path = folder / "unlearning" / "unlearning.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return {name: None if item["value"] is None else float(item["value"]) for name, item in found.items()}


def _write(root: File, study: Study) -> File:
    write_json(root / NUMBERS, numbers(study))
    return page(study).write(root)
