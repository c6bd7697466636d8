"""Studies that are decided on validation losses of groups: what `mixing.json` of a run tells as metrics.

    mixing.mean_loss, mixing.mean_perplexity      over groups, each counted once
    mixing.loss.<group>, mixing.perplexity.<group>
    mixing.proportion.<group>                     those the run ended with
    mixing.probe_steps, mixing.validation_seconds what measuring cost, the former being steps of the run

A study of such metrics alone needs no evaluation by completions; its variants must share `data.validation` instead.
Lower is better: its claims have `direction: less`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain import registry
from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.reports.markdown import escape, table
from posttrain.reports.run_report import RunFolder
from posttrain.reproduce.claims import Study

if TYPE_CHECKING:
    from posttrain.reproduce.results import StudyResult

PREFIX = "mixing."
PLAIN = ("mean_loss", "mean_perplexity", "probe_steps", "validation_seconds")
OF_A_GROUP = ("loss", "perplexity", "proportion")


def is_of_losses(study: Study) -> bool:
    """Whether the study is decided on losses of groups alone."""
    return all(metric.startswith(PREFIX) for metric in study.metrics())


def unknown_losses(study: Study) -> list[PosttrainError]:
    """Metrics under `PREFIX` that no run has. Which groups there are is known afterwards."""
    errors: list[PosttrainError] = []
    for metric in study.metrics():
        name, dot, group = metric.removeprefix(PREFIX).partition(".")
        known = name in PLAIN if not dot else name in OF_A_GROUP and bool(group)
        if metric.startswith(PREFIX) and not known:
            allowed = ", ".join([*(PREFIX + n for n in PLAIN), *(f"{PREFIX}{n}.<group>" for n in OF_A_GROUP)])
            where = f"{study.source.file} metric"
            errors.append(ConfigError("a run records no such number", where=where, got=metric, allowed=allowed))
    return errors


def loss_settings(config: RunConfig) -> dict[str, Any] | None:
    """What the final losses depend on beside training; None where they are not measured."""
    if config.data.validation is None or "streams" not in registry.get(config.method.name).inputs:
        return None
    names = ("mixing_eval_examples", "mixing_test_examples", "mixing_seed", "groups")
    return {
        "data.validation": config.data.validation.model_dump(),
        **{f"method.{name}": getattr(config.method, name) for name in names},
    }


def losses_after(folder: RunFolder) -> dict[str, Any]:
    """The last losses of a run in the form of an evaluation after training.

    Raises:
        DataError: the run has none.
    """
    path = folder.path / "mixing.json"
    if not path.exists():
        raise DataError("the run has no losses of groups", where=str(folder.path), fix="Delete the folder")
    record = json.loads(path.read_text(encoding="utf-8"))
    measured = [entry["losses"] for entry in record["records"] if "losses" in entry]
    # Rows that no decision has seen, where the recipe holds some back.
    measured += [entry["test_losses"] for entry in record["records"] if "test_losses" in entry]
    if not measured:
        raise DataError("the losses after training are missing", where=str(path), fix="Write data.validation")
    cost = record["cost"]
    rows = cost["validation_rows"] // max(1, cost["validation_measurements"])
    return {
        "partial": False,
        "failed": 0,
        "unscored": 0,
        "num_prompts": rows,
        "mixing": numbers(record["groups"], measured[-1], record["proportions"], cost),
    }


def numbers(
    groups: Sequence[str], losses: Sequence[float], proportions: Sequence[float], cost: dict[str, Any]
) -> dict[str, Any]:
    """The metrics below `PREFIX`."""
    found = dict(zip(groups, map(math.exp, losses), strict=True))
    return {
        "mean_loss": math.fsum(losses) / len(losses),
        "mean_perplexity": math.fsum(found.values()) / len(losses),
        "probe_steps": cost["probe_steps"],
        "validation_seconds": cost["validation_seconds"],
        "loss": dict(zip(groups, losses, strict=True)),
        "perplexity": found,
        "proportion": dict(zip(groups, proportions, strict=True)),
    }


def flat(numbers: dict[str, Any]) -> dict[str, float]:
    """Every metric by its full name, for the results file."""
    found = {PREFIX + name: float(numbers[name]) for name in PLAIN}
    for kind in OF_A_GROUP:
        found |= {f"{PREFIX}{kind}.{group}": float(value) for group, value in numbers[kind].items()}
    return found


def losses_table(result: StudyResult) -> str:
    """Perplexity of each group, what measuring cost, and the proportions in the end: means over seeds."""
    first = result.variants[0].seeds[0].values
    groups = [name.removeprefix(f"{PREFIX}perplexity.") for name in first if name.startswith(f"{PREFIX}perplexity.")]
    header = ["variant", *(f"ppl {escape(name)}" for name in groups), *(f"p {escape(name)}" for name in groups)]
    rows = []
    for variant in result.variants:

        def mean(metric: str, seeds: Sequence[Any] = variant.seeds) -> float:
            return math.fsum(seed.values[f"{PREFIX}{metric}"] for seed in seeds) / len(seeds)

        cells = [f"{mean(f'perplexity.{name}'):.3f}" for name in groups]
        cells += [f"{mean(f'proportion.{name}'):.3f}" for name in groups]
        cost = [f"{mean('probe_steps'):.0f} of {variant.steps}", f"{mean('validation_seconds'):.1f}"]
        rows.append([escape(variant.label), *cells, *cost])
    told = (
        "Perplexity on held-out rows of each group, the proportions a run ended with, its steps that measured (they "
        "are among its steps), and the seconds that validation losses took."
    )
    return f"{told}\n\n{table([*header, 'steps that measure', 'seconds of validation'], rows)}"
