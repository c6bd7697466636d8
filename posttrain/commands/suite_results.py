"""Results of a suite of tasks: how they are kept, read back, shown, and set against an earlier result.

suite.json           scores by task: value and standard error of each metric, documents, version of the task
documents/           every document of each task with the model's responses, one JSON object a line
run.json, REPORT.md  as in the folder of an evaluation
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.commands.eval_folder import write_record
from posttrain.errors import DataError
from posttrain.evaluation.results import mean_and_stderr
from posttrain.reports.markdown import MISSING, escape, number, table
from posttrain.reports.records import write_atomic, write_json, write_jsonl

SUITE_FILE = "suite.json"
# A metric whose documents have this mean is that mean, so its documents can be compared one by one.
_SAME = 1e-9
_NUMBER = re.compile(r"[+-]?[\d.,]+( ± [\d.]+| of [\d,]+)?")


@dataclass(frozen=True)
class Metric:
    """A metric of a task, as lm-eval names it: "acc,none" is accuracy under the filter "none"."""

    value: float
    stderr: float | None  # over documents; None where lm-eval gives none
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskScore:
    """Result of one task."""

    version: str
    num_documents: int  # evaluated
    num_available: int  # in the task
    num_shots: int
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class SuiteResult:
    """Scores by task, and the documents of each task with their values by metric."""

    tasks: dict[str, TaskScore]
    documents: dict[str, list[dict[str, Any]]]  # doc_id, hash, prompt, responses, target, values


@dataclass(frozen=True)
class Drift:
    """Change of one metric from one suite result to another."""

    task: str
    metric: str
    before: float
    after: float
    difference: float  # after minus before; over the same documents where they are known
    stderr: float | None  # of the paired difference; None where documents cannot be paired
    num_documents: int  # that are in both; 0 = not paired
    note: str | None = None  # why not


def write_suite(
    folder: Path,
    result: SuiteResult,
    *,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    title: str,
    drift: Sequence[Drift] = (),
) -> None:
    """Write the files of a suite result.

    Args:
        folder: from `eval_folder.claim`.
        result: of the suite.
        identity: all that the result depends on.
        facts: what else `run.json` holds.
        title: of the report.
        drift: change against an earlier result; empty without one.
    """
    for name, documents in result.documents.items():
        write_jsonl(_documents_path(folder, name), documents)
    write_json(folder / SUITE_FILE, {name: asdict(score) for name, score in result.tasks.items()})
    write_record(folder, identity, facts)
    parts = [f"# {escape(title)}", "", "## Result", "", _markdown(task_rows(result))]
    if drift:
        parts += ["", f"## Against {escape(facts.get('against'))}", "", _markdown(drift_rows(drift))]
    parts += ["", "± is one standard error over documents. A difference over the same documents is paired."]
    write_atomic(folder / "REPORT.md", "\n".join(parts) + "\n")


def read_suite(folder: str | Path) -> SuiteResult:
    """The result that `write_suite` left in a folder.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    place = Path(folder)
    try:
        tasks = json.loads((place / SUITE_FILE).read_text(encoding="utf-8"))
        scores = {
            name: TaskScore(**{**values, "metrics": {key: Metric(**item) for key, item in values["metrics"].items()}})
            for name, values in tasks.items()
        }
        documents = {}
        for name in scores:
            lines = _documents_path(place, name).read_text(encoding="utf-8").split("\n")
            documents[name] = [json.loads(line) for line in lines if line]
    except FileNotFoundError as problem:
        fix = "Name the folder that an earlier `posttrain eval MODEL --suite ...` reported"
        raise DataError("no result of a suite in this folder", where=str(problem.filename or place), fix=fix) from None
    except (ValueError, TypeError, KeyError) as problem:
        raise DataError(f"the result of the suite cannot be read: {problem}", where=str(place)) from None
    return SuiteResult(scores, documents)


def suite_drift(before: SuiteResult, after: SuiteResult) -> list[Drift]:
    """Change of every metric that both results have, task by task; the prompts decide whether documents are the same.

    A metric that is a mean over documents is compared document by document, which makes its error smaller than that of
    two separate samples. One that is not (a perplexity, a BLEU score), a task of another version and other documents
    give the plain difference without an error, and a note that says why.
    """
    found = []
    for name, score in after.tasks.items():
        earlier = before.tasks.get(name)
        for key, metric in score.metrics.items():
            if earlier is not None and key in earlier.metrics:
                found.append(_drift(name, key, before, after))
            elif earlier is None:
                found.append(Drift(name, key, math.nan, metric.value, math.nan, None, 0, "not in the earlier result"))
    return found


def _drift(name: str, key: str, before: SuiteResult, after: SuiteResult) -> Drift:
    old, new = before.tasks[name], after.tasks[name]
    first, second = old.metrics[key].value, new.metrics[key].value
    plain = (name, key, first, second, second - first, None, 0)
    if (old.version, old.num_shots) != (new.version, new.num_shots):
        note = f"version {old.version}, {old.num_shots} examples shown before; {new.version}, {new.num_shots} now"
        return Drift(*plain, note)
    values = [_values(result.documents[name], key) for result in (before, after)]
    for part, metric in zip(values, (first, second), strict=True):
        if not part or abs(mean_and_stderr(list(part.values()))[0] - metric) > _SAME * max(1.0, abs(metric)):
            return Drift(*plain, "not a mean over documents")
    shared = sorted(values[0].keys() & values[1].keys())
    if not shared:
        return Drift(*plain, "no document with the same prompt in both")
    difference, stderr = mean_and_stderr([values[1][item] - values[0][item] for item in shared])
    fewer = None if len(shared) == len(values[0]) == len(values[1]) else f"only the {len(shared)} documents in both"
    return Drift(name, key, first, second, difference, stderr if len(shared) > 1 else None, len(shared), fewer)


def _values(documents: Sequence[Mapping[str, Any]], key: str) -> dict[tuple[int, str, str], float]:
    """Value of each document, by number, content and prompt; none if one of them has no single number."""
    found = {}
    for item in documents:
        value = item["values"].get(key)
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return {}
        found[(item["doc_id"], str(item["hash"]), str(item["prompt"]))] = float(value)
    return found


# ---- tables, the first row is the head ----


def task_rows(result: SuiteResult) -> list[list[str]]:
    """One row a metric: task, metric, value ± error, documents, version."""
    rows = [["task", "metric", "value", "documents", "examples shown", "version"]]
    for name, score in result.tasks.items():
        counted = number(score.num_documents)
        if score.num_documents < score.num_available:
            counted += f" of {number(score.num_available)}"
        for key, metric in score.metrics.items():
            shown = _value(metric.value, metric.stderr)
            rows.append([name, key, shown, counted, number(score.num_shots), score.version])
    return rows


def drift_rows(drift: Sequence[Drift]) -> list[list[str]]:
    """One row a metric: before, after, difference ± error, documents compared, note."""
    rows = [["task", "metric", "before", "after", "difference", "documents", "note"]]
    for item in drift:
        change = _value(item.difference, item.stderr, signed=True)
        compared = number(item.num_documents) if item.num_documents else MISSING
        rows.append(
            [item.task, item.metric, _value(item.before), _value(item.after), change, compared, item.note or ""]
        )
    return rows


def _value(value: float, stderr: float | None = None, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return MISSING
    shown = f"{value:+.4f}" if signed else f"{value:.4f}"
    return shown if stderr is None else f"{shown} ± {stderr:.4f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    # A number needs no escape, and reads better in the source without.
    head, *body = [[item if _NUMBER.fullmatch(item) else escape(item) for item in row] for row in rows]
    return table(head, body)


def _documents_path(folder: Path, task: str) -> Path:
    # A task's name may hold signs that a file's name must not.
    return folder / "documents" / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', task)}.jsonl"
