"""`posttrain eval MODEL --suite unlearning --recipe R`: every unlearning metric that the recipe's rows allow.

unlearning.json      the metrics, and why some could not be computed
rows/                the numbers of every row of each set, which a later result is set against
run.json, REPORT.md, report.html, plots/    as in the folder of an evaluation
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from posttrain.commands.eval_folder import claim, holds, write_record
from posttrain.config.loader import load_stage
from posttrain.config.verdict import evaluation_settings, template_variables
from posttrain.console import console, quiet_libraries, say
from posttrain.data.mixture import build_mixture
from posttrain.data.sources import load_source
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.evaluation.answer_scores import answer_of, encode_rows, score_rows
from posttrain.evaluation.generate import evaluate
from posttrain.evaluation.progress import EvaluationProgress
from posttrain.evaluation.results import EvalSettings
from posttrain.evaluation.unlearning import rouge_l_recall
from posttrain.methods.unlearning_paths.plot import draw_metrics
from posttrain.methods.unlearning_paths.table import MEANINGS, Measured, measure
from posttrain.reports.document import Document, Image, Section, Table, show
from posttrain.reports.provenance import data_fingerprint
from posttrain.reports.records import json_value, write_json, write_jsonl
from posttrain.rewards.answers import completion_text
from posttrain.training.evaluator import precision
from posttrain.training.saved_models import find_model

NAME = "unlearning"
NUMBERS = "unlearning.json"
METHOD = "unlearning_paths"
# What the plot shows: everything between 0 and 1.
_SHARES = ("probability", "rouge_l_recall", "truth_ratio", "extraction_strength", "exact_memorisation")
_SET_METRICS = ("logp", "paraphrase_logp", *_SHARES, "min_k")


@dataclass(frozen=True)
class UnlearningResult:
    """Rows of every measured set, and the metrics made of them."""

    sets: dict[str, list[dict[str, Any]]]
    metrics: dict[str, Measured]
    folder: Path


def evaluate_unlearning(
    model: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    revision: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 32,
    against: str | Path | None = None,
    reference: str | Path | None = None,
    tables: bool = True,
    renew: bool = False,
) -> UnlearningResult:
    """Measure a saved model, in one process; write the result and print its table.

    Args:
        model: model, run, checkpoint or adapter folder, or Hub id.
        recipe: its `data.probes` are the sets; see `probe_sources` for what a recipe of unlearning has without them.
        overrides: "block.key=value".
        stage: of a recipe with stages; None = the last.
        revision: branch, tag or commit of a Hub id.
        output: folder of the result.
        batch_size: answers of a forward.
        against: folder of the result of the model before unlearning.
        reference: folder of the result of a model trained without the forget set.
        tables: print them, too.
        renew: keep the result that `output` holds if it is this one, and replace any other.

    Raises:
        PosttrainError: anything a user can cause.
    """
    _require_one_process()
    name, config = load_stage(recipe, overrides, stage)[-1]
    before, other = read_result(against, "--against"), read_result(reference, "--reference")
    sources = probe_sources(config)
    found = find_model(model, revision=revision, stage=name)
    quiet_libraries()
    datasets = load_probes(config, sources)
    tokenizer, weights = found.tokenizer(config.model), found.load(config.model)
    accelerator = Accelerator(**precision(config))
    if not config.model.load_in_4bit:
        weights = weights.to(accelerator.device)
    variables, length = template_variables(config), _longest_answer(config)
    files = found.identity(config.model)
    identity = _identity(files, weights, datasets, {"template": variables, "max_new_tokens": length}, (before, other))
    if renew and output is not None and (known := _kept(Path(output), identity)) is not None:
        return UnlearningResult(known, measure(known, before=before, retrained=other), Path(output))
    folder = claim(output or _place(found), identity, chosen=output is not None)
    say(f"measuring {found.path} on {', '.join(f'{key} ({len(rows)})' for key, rows in datasets.items())}")
    with accelerator.autocast():
        sets = measure_sets(weights, tokenizer, datasets, batch_size=batch_size, max_new_tokens=length, **variables)
    metrics = measure(sets, before=before, retrained=other)
    facts: dict[str, Any] = {"model": {"given": found.given, **files}, "recipe": str(recipe), "stage": name}
    facts |= {"against": against and str(against), "retrained": reference and str(reference)}
    page = _write(folder, sets, metrics, {"before": before, "retrained": other}, identity, facts, found.label, tables)
    say(f"report: {page.with_name('REPORT.md')}, and the same as one page: {page}")
    return UnlearningResult(sets, metrics, folder)


def _kept(folder: Path, identity: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]] | None:
    """The rows that a folder holds of this very measurement; any other is removed."""
    if (folder / NUMBERS).is_file() and holds(folder, identity):
        return read_result(folder, "output")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "Start it without accelerate launch"
        raise SupportError("a suite runs in one process", where="--suite", got=os.environ["WORLD_SIZE"], fix=fix)


def probe_sources(config: Any) -> dict[str, Any]:
    """Sets to measure by name: `data.probes`; in a recipe of unlearning also `forget` (its rows) and `retain`.

    Raises:
        ConfigError: none.
    """
    block = config.data
    found: dict[str, Any] = {}
    if config.method.name == METHOD:
        found["forget"] = block.train
        if getattr(block, "retain", None) is not None:
            found["retain"] = block.retain
    found |= dict(block.probes or {})
    if not found:
        fix = "Write data.probes, e.g. data: {probes: {forget: {...}, retain: {...}, holdout: {...}}}"
        raise ConfigError("the recipe names no rows to measure", where=config.where("data", "probes"), fix=fix)
    return found


def load_probes(config: Any, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of each set."""
    prompt = config.data.system_prompt
    return {
        name: build_mixture(source, system_prompt=prompt).dataset
        if getattr(source, "mixture", None) is not None
        else load_source(source, system_prompt=prompt)
        for name, source in sources.items()
    }


def measure_sets(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Any],
    *,
    batch_size: int,
    max_new_tokens: int | None,
    **chat_template_kwargs: Any,
) -> dict[str, list[dict[str, Any]]]:
    """The numbers of every row of each set, with a progress bar.

    Args:
        model: causal LM.
        tokenizer: its tokenizer.
        datasets: rows by the name of the set.
        batch_size: answers of a forward.
        max_new_tokens: length of the greedy answer; None = none is generated, and there is no ROUGE.
        chat_template_kwargs: variables of the template.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    found = {}
    for name, dataset in datasets.items():
        rows = encode_rows(tokenizer, dataset, name=name, **chat_template_kwargs)
        with EvaluationProgress(words=(f"scoring {name}", f"scored {name}:", "answers")) as progress:
            numbers = score_rows(model, rows, pad=pad, batch_size=batch_size, progress=progress)
        if max_new_tokens is not None:
            asked = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
            for row, greedy in zip(
                numbers, _greedy(model, tokenizer, dataset, asked, chat_template_kwargs), strict=True
            ):
                row |= greedy
        found[name] = numbers
    return found


def _greedy(
    model: Any, tokenizer: Any, dataset: Any, asked: Mapping[str, Any], variables: dict[str, Any]
) -> list[dict[str, Any]]:
    """Greedy completion and ROUGE-L recall of each row, in the order of the rows."""

    def recall(completions: Sequence[Any], index: Sequence[int], **_: Any) -> list[float]:
        pairs = zip(completions, index, strict=True)
        return [rouge_l_recall(completion_text(text), answer_of(dataset[i])) for text, i in pairs]

    rows = [{"prompt": row["prompt"], "index": place} for place, row in enumerate(dataset)]
    with EvaluationProgress(words=("answering", "answered", "questions")) as progress:
        result = evaluate(
            model,
            tokenizer,
            rows,
            recall,
            settings=EvalSettings(num_prompts=None, **asked),
            progress=progress,
            chat_template_kwargs=variables,
        )
    return [{"rouge_l_recall": item["value"], "completion": item["completion"]} for item in result.samples]


def _longest_answer(config: Any) -> int:
    return int(evaluation_settings(config)["max_new_tokens"])


# ---- files ----


def read_result(folder: str | Path | None, option: str) -> dict[str, list[dict[str, Any]]] | None:
    """The rows that an earlier call left in a folder; None for no folder.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if folder is None:
        return None
    place = Path(folder)
    try:
        names = list(json.loads((place / NUMBERS).read_text(encoding="utf-8"))["sets"])
        return {
            name: [
                _numbers(json.loads(line))
                for line in (place / "rows" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
                if line
            ]
            for name in names
        }
    except FileNotFoundError:
        fix = "Name the folder that an earlier `posttrain eval MODEL --suite unlearning` reported"
        raise DataError(
            "no result of unlearning metrics in this folder", where=option, got=str(folder), fix=fix
        ) from None
    except (ValueError, TypeError, KeyError) as problem:
        raise DataError(f"the result cannot be read: {problem}", where=option, got=str(folder)) from None


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row with non-finite numbers, which are kept as words, as numbers again."""
    words = ("key", "completion")
    return {
        key: value if key in words else [float(item) for item in value] if isinstance(value, list)
        else float(value) if isinstance(value, str) else value
        for key, value in row.items()
    }  # fmt: skip


def _identity(
    files: Mapping[str, Any],
    model: Any,
    datasets: Mapping[str, Any],
    settings: Mapping[str, Any],
    others: Sequence[Any],
) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "model": [files["sha256"], files.get("base")],
        "dtype": str(model.dtype),
        "data": {key: data_fingerprint(rows) for key, rows in datasets.items()},
        **settings,
        "others": [None if sets is None else _digest(sets) for sets in others],
    }


def _digest(sets: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json_value(dict(sets)), sort_keys=True).encode()).hexdigest()


def _place(model: Any) -> Path:
    """Where the result goes: beside the model in its run, else below runs/eval."""
    if model.run is not None:
        return Path(model.run, f"eval-{NAME}-{model.label}")
    return Path("runs", "eval", f"{model.label}-{NAME}")


def _write(
    folder: Path,
    sets: Mapping[str, Any],
    metrics: Mapping[str, Measured],
    others: Mapping[str, Mapping[str, Any] | None],
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    label: str,
    tables: bool,
) -> Path:
    for name, rows in sets.items():
        write_jsonl(folder / "rows" / f"{name}.jsonl", rows)
    counted = {name: len(rows) for name, rows in sets.items()}
    write_record(folder, identity, facts)
    known = {name: rows for name, rows in others.items() if rows is not None}
    page = replace(
        _page(label, counted, metrics), sections=(*_sections(counted, metrics), _picture(label, sets, known))
    )
    show(page, console(), titles=("Metrics", "By set", "Not computed") if tables else ())
    path = page.write(folder)
    # Last: who finds it finds the rest.
    write_json(folder / NUMBERS, {"metrics": {key: asdict(item) for key, item in metrics.items()}, "sets": counted})
    return path


def _page(label: str, counted: Mapping[str, int], metrics: Mapping[str, Measured]) -> Any:
    told = ", ".join(f"{name} ({count} rows)" for name, count in counted.items())
    quality = metrics["forget_quality"]
    answer = (
        f"Forget quality {quality.value:.3g}, a p-value: small means unlike the retrained model."
        if quality.value is not None
        else "Whether it behaves like a retrained model was not tested: " + quality.reason + "."
    )
    return Document(f"Unlearning metrics of {label}", answer, [f"Measured on {told}."])


def _sections(counted: Mapping[str, int], metrics: Mapping[str, Measured]) -> list[Any]:
    whole = [name for name in metrics if "." not in name]
    rows = [[_words(name), _shown(metrics[name]), MEANINGS[name]] for name in whole if metrics[name].value is not None]
    by_set = [[_words(metric), *(_shown(metrics[f"{name}.{metric}"]) for name in counted)] for metric in _SET_METRICS]
    missing = [f"{_words(name)}: {_words(item.reason)}" for name, item in metrics.items() if item.value is None]
    meanings = [f"{_words(metric)}: {MEANINGS[metric]}" for metric in _SET_METRICS]
    return [
        Section("Metrics", table=Table(["metric", "value", "meaning"], rows, is_text=True)) if rows else
        Section("Metrics", ["None of those that compare sets or models could be computed."]),
        Section("By set", table=Table(["mean over rows", *counted], by_set), points=meanings),
        Section("Not computed", points=missing or ["Nothing is missing."]),
    ]  # fmt: skip


def _picture(label: str, sets: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Any:
    models = {label: sets, **others}
    shares = {
        model: {
            name: {
                metric: found[f"{name}.{metric}"].value
                for metric in _SHARES
                if found[f"{name}.{metric}"].value is not None
            }
            for name in measured
        }
        for model, measured in models.items()
        for found in [measure(measured)]
    }
    plot = draw_metrics(shares)  # type: ignore[arg-type]
    return Section("Plot", images=[Image("unlearning", plot.png, plot.alt)])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(item: Measured) -> str:
    return "–" if item.value is None else f"{item.value:.4g}"
