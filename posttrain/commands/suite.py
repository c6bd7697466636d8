"""`posttrain eval --suite`: lm-eval's tasks on any saved model, and the drift between two such results."""

from __future__ import annotations

import logging
import math
import numbers
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.commands.eval_folder import claim
from posttrain.commands.suite_results import (
    Drift,
    Metric,
    SuiteResult,
    TaskScore,
    drift_rows,
    read_suite,
    suite_drift,
    task_rows,
    write_suite,
)
from posttrain.commands.suite_tasks import SuiteTasks, find_tasks, sandboxed, tasks_sha256
from posttrain.config.run_config import ModelBlock
from posttrain.config.source import SourceMap
from posttrain.config.validation import explain_all, raise_all
from posttrain.console import quiet_libraries, say
from posttrain.errors import ConfigError, DataError, PosttrainError, SupportError, need
from posttrain.reports import provenance
from posttrain.training.saved_models import SavedModel, find_model

__all__ = ["Drift", "SuiteOptions", "SuiteResult", "evaluate_suite", "read_suite", "run_suite", "suite_drift"]

# Resamplings for the error of a metric that is no mean; lm-eval's 100000 take minutes.
BOOTSTRAP_ROUNDS = 1000
MODEL_OPTIONS = ("dtype", "attn_implementation", "trust_remote_code", "load_in_4bit")


@dataclass(frozen=True)
class SuiteOptions:
    """What is asked of the model, and how."""

    tasks: str  # names separated by commas, or a task file or folder
    include: str | None = None  # folder of further tasks, whose Python code runs
    limit: int | None = None  # first documents of each task; None = all
    seed: int = 0  # choice of examples shown, sampling
    batch_size: int = 8
    apply_chat_template: bool = False  # questions as chat messages


def evaluate_suite(
    model: str,
    *,
    options: SuiteOptions,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    output: str | Path | None = None,
    against: str | Path | None = None,
) -> SuiteResult:
    """Run lm-eval tasks on a saved model, in one process, write the result and print its table.

    Args:
        model: model, run, checkpoint or adapter folder, or Hub id.
        options: tasks and settings.
        overrides: "model.key=value", e.g. model.dtype=bfloat16.
        revision: branch, tag or commit of a Hub id.
        output: folder of the result.
        against: folder of an earlier suite result to compare with.

    Raises:
        PosttrainError: anything a user can cause.
    """
    require_lm_eval()
    # The tasks explain themselves at length, as warnings.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    block = model_block(overrides)
    found = find_model(model, revision=revision)
    earlier = read_suite(against) if against is not None else None
    quiet_libraries()
    tasks = find_tasks(options.tasks, include=options.include)
    tokenizer, weights = found.tokenizer(block), found.load(block)
    identity = {
        "model": [(files := found.identity(block))["sha256"], files.get("base")],
        "dtype": str(weights.dtype).removeprefix("torch."),
        "suite": {name: value for name, value in asdict(options).items() if name != "batch_size"},
        "tasks_sha256": tasks_sha256(tasks),
        "lm_eval": version("lm_eval"),
    }
    folder = claim(output or _place(found, options.tasks), identity, chosen=output is not None)
    say(f"running {options.tasks} on {found.path}")
    result = run_suite(weights, tokenizer, options=options, tasks=tasks)
    drift = suite_drift(earlier, result) if earlier is not None else []
    versions = {**provenance.versions(), "lm_eval": version("lm_eval")}
    facts = {
        "versions": versions,
        "model": {"given": found.given, **files},
        "suite": asdict(options),
        "against": against and str(against),
    }
    title = f"{found.label} on {options.tasks}"
    write_suite(folder, result, identity=identity, facts=facts, title=title, drift=drift)
    _show(title, task_rows(result))
    if drift:
        _show(f"against {against}", drift_rows(drift))
    say(f"report: {folder / 'REPORT.md'}")
    return result


def _place(model: SavedModel, tasks: str) -> Path:
    """Where the result goes: beside the model in its run, else below runs/eval."""
    word = Path(tasks).stem if Path(tasks).exists() else tasks.replace(",", "+")[:60]
    safe = "".join(sign if sign.isalnum() or sign in "._+-" else "-" for sign in word)
    if model.run is not None:
        return model.run / f"eval-{safe}-{model.label}"
    return Path("runs", "eval", f"{model.label}-{safe}")


def require_lm_eval() -> None:
    """Raise SupportError without the package lm-eval, and in one of several processes, which would all do the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "Start it without accelerate launch"
        raise SupportError("a suite runs in one process", where="--suite", got=os.environ["WORLD_SIZE"], fix=fix)
    need("lm_eval", where="--suite", purpose="suites")


def model_block(overrides: Sequence[str]) -> Any:
    """A `model` block with what "model.key=value" says; path and revision are filled in later."""
    values: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or key.removeprefix("model.") not in MODEL_OPTIONS or not key.startswith("model."):
            allowed = f"with --suite: {', '.join(f'model.{name}' for name in MODEL_OPTIONS)}"
            raise ConfigError("not an option of a suite", where=f"override {text}", allowed=allowed)
        values[key.removeprefix("model.")] = {"true": True, "false": False, "null": None}.get(value, value)
    try:
        return ModelBlock.model_validate(values)
    except ValidationError as problem:
        raise_all(explain_all(problem, SourceMap("override"), below=("model",), root=ModelBlock))
        raise


def run_suite(model: Any, tokenizer: Any, *, options: SuiteOptions, tasks: SuiteTasks | None = None) -> SuiteResult:
    """Scores of a loaded model; weights move to the GPU if there is one.

    Args:
        model: causal LM, also with an adapter.
        tokenizer: its tokenizer.
        options: tasks and settings.
        tasks: those of the options, if they have been found before.

    Raises:
        ConfigError, SupportError: see `suite_tasks.find_tasks`. DataError: a task that cannot be run.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = tasks or find_tasks(options.tasks, include=options.include)
    if torch.cuda.is_available() and not getattr(model, "is_quantized", False):
        model = model.to("cuda")
    model.eval()
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size)
    try:
        with sandboxed(tasks.data_only):
            found = simple_evaluate(
                model=language_model,
                tasks=tasks.names,
                task_manager=tasks.manager,
                limit=options.limit,
                batch_size=options.batch_size,
                bootstrap_iters=BOOTSTRAP_ROUNDS,
                apply_chat_template=options.apply_chat_template,
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=options.seed,
                fewshot_random_seed=options.seed,
            )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        TemplateError,
        DatasetsError,
    ) as error:
        raise _explained(error, options) from error
    return _read(found)


def _explained(error: Exception, options: SuiteOptions) -> PosttrainError:
    text = " ".join(str(error).split())[:300].rstrip(".")
    if "marked as unsafe" in text:
        return SupportError("the task runs the model's output as code, which posttrain does not", where=options.tasks)
    if options.apply_chat_template and "chat_template" in text:
        return DataError("the tokenizer has no chat template", where="--apply-chat-template", fix="Leave it out")
    return DataError(
        f"lm-eval cannot run the tasks: {type(error).__name__}: {text}",
        where=options.tasks,
        fix="Relative data_files start from the folder the command is run in, data on the Hub need the network",
    )


def _read(found: Any) -> SuiteResult:
    """lm-eval's nested results in our types."""
    tasks, documents = {}, {}
    for name, values in found["results"].items():
        if name not in found["samples"]:
            continue  # a group; its tasks are listed themselves
        metrics = {}
        for key, value in values.items():
            metric, separator, chosen = key.partition(",")
            if not separator or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            known = float(error) if isinstance(error, numbers.Real) and math.isfinite(error) else None
            better = found["higher_is_better"].get(name, {}).get(metric)
            metrics[key] = Metric(float(value), known, better)
        counts = found["n-samples"][name]
        version, shots = str(found["versions"].get(name)), int(found["n-shot"].get(name) or 0)
        tasks[name] = TaskScore(version, counts["effective"], counts["original"], shots, metrics)
        documents[name] = _documents(found["samples"][name])
    return SuiteResult(tasks, documents)


def _documents(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a document, with the values of every metric and filter."""
    found: dict[int, dict[str, Any]] = {}
    for sample in samples:
        entry = found.setdefault(
            sample["doc_id"],
            {
                "doc_id": sample["doc_id"],
                "hash": sample["doc_hash"],
                "prompt": sample["arguments"][0][0] if sample["arguments"] else None,
                "target": sample["target"],
                "responses": sample["filtered_resps"],
                "values": {},
            },
        )
        entry["values"] |= {f"{metric},{sample['filter']}": sample[metric] for metric in sample["metrics"]}
    return [found[number] for number in sorted(found)]


def _show(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row is its head."""
    # Text: a name may hold signs that rich would read as markup.
    table = Table(title=Text(title), title_justify="left")
    for place, head in enumerate(rows[0]):
        table.add_column(head, justify="right" if place > 1 else "left")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
