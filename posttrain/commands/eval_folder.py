"""The folder of an evaluation made after training, and how it compares with what the run itself recorded.

run.json                     what was evaluated and how: model with SHA-256, settings, data, versions, command
eval.json, completions/      the result and every completion, as in a run's folder
REPORT.md                    written from these
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError
from posttrain.evaluation.results import EvalResult, EvalSettings, Sample, paired_difference
from posttrain.hidden import without_secrets
from posttrain.reports import sections
from posttrain.reports.markdown import escape, number, percent, points, table
from posttrain.reports.provenance import command_line, git_state, versions
from posttrain.reports.records import json_value, write_atomic, write_json
from posttrain.reports.run_report import AFTER, BEFORE, RunFolder

KIND = "evaluation"
NAME = "evaluation"  # of the entry in eval.json
# What two evaluations must agree on, prompt by prompt, to be called equal.
_OUTCOME = ("completion", "value", "correct", "length", "truncated")


def claim(folder: str | Path, identity: Mapping[str, Any], *, chosen: bool) -> Path:
    """The folder to write to; an earlier evaluation is replaced only by the same one.

    Args:
        folder: wanted place.
        identity: all that the result depends on; see `fingerprint`.
        chosen: whether the user named the folder. Otherwise "-2", "-3" … is added where it is taken.

    Raises:
        ConfigError: the user's folder holds a run, or another evaluation.
    """
    wanted = Path(folder)
    place, count = wanted, 1
    while (place / "run.json").exists():
        if holds(place, identity):
            return place
        if chosen:
            record = json.loads((place / "run.json").read_text(encoding="utf-8"))
            what = "another evaluation is in this folder" if record.get("kind") == KIND else "a run is in this folder"
            raise ConfigError(what, where="--output", got=str(wanted), fix="Name another folder")
        count += 1
        place = wanted.with_name(f"{wanted.name}-{count}")
    return place


def holds(folder: str | Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder has the finished evaluation with this identity."""
    path = Path(folder, "run.json")
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return record.get("kind") == KIND and record.get("identity") == fingerprint(identity)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of nested plain values."""
    return hashlib.sha256(json.dumps(json_value(dict(identity)), sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write `run.json`: the facts, what the result depends on, versions, commit and command; secrets are hidden."""
    record = {
        "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
        "git": git_state(),
        **facts,
        "identity": fingerprint(identity),
    }
    return write_json(folder / "run.json", without_secrets(json_value(record)))


def write_report(folder: Path, *, title: str, notes: Sequence[str], facts: Mapping[str, Any]) -> Path:
    """Write `REPORT.md` from the folder's eval.json and completions.

    Args:
        folder: of the evaluation.
        title: plain text.
        notes: warnings and the comparison with the run's own record, a sentence each.
        facts: rows of the last table by name.
    """
    files = RunFolder(folder)
    item = files.read_evals()[NAME]
    samples = files.read_samples(NAME)
    named = [("all prompts", item)]
    parts = [f"# {escape(title)}", ""]
    parts += [f"**{escape(partial_text(item))}**", ""] if item["partial"] else []
    parts += [f"The model solved {percent(item['accuracy'], item['accuracy_stderr'])} of the prompts."]
    parts += ["", "## Result", "", sections.result_table(named)]
    remarks = [*sections.remarks(named), *[escape(note) for note in notes]]
    parts += ["", *[f"- {line}" for line in remarks]] if remarks else []
    groups = group_table(item)
    parts += ["", "## By group", "", groups] if groups else []
    shown = sections.completions_table([("completion", samples)])
    parts += ["", "## Completions", "", "A few of those in `completions/`.", "", shown] if shown else []
    rows = [[escape(name), escape(value)] for name, value in facts.items() if value not in (None, "")]
    parts += ["", "## How it was made", "", table(["", "full record: `run.json`"], rows).replace("---:", ":---")]
    parts += ["", "## How to read this", "", sections.READING]
    return write_atomic(files.report_path, "\n".join(parts).rstrip() + "\n")


def group_table(item: Mapping[str, Any]) -> str | None:
    """Accuracy, pass@k, length and truncation of each group; None with fewer than two."""
    groups = item["per_group"]
    if len(groups) < 2:
        return None
    sizes = sections.pass_at_k_columns(list(groups.values()))
    rows = [
        [
            escape(name),
            percent(score["accuracy"], score["accuracy_stderr"]),
            *sections.pass_at_k_cells(score, sizes),
            number(score["num_scored_prompts"]),
            number(score["mean_length"]),
            percent(score["truncated_fraction"]),
        ]
        for name, score in groups.items()
    ]
    heads = ["group", "accuracy", *[f"pass@{k}" for k in sizes], "prompts", "mean length (tokens)", "cut off"]
    return table(heads, rows)


def partial_text(item: Mapping[str, Any]) -> str:
    """ "partial: 120 of 500 prompts"."""
    return f"partial: {item['num_prompts']} of {item['num_requested']} prompts (a random choice of them)"


# ---- against the run's own record ----


def recorded_row(run: RunFolder, step: int | None) -> str | None:
    """Name of the evaluation that a run made of the weights it saved.

    Args:
        run: folder of the run.
        step: of the checkpoint; None for the finished model.
    """
    evals = run.read_evals()
    if step is None:
        return AFTER if AFTER in evals else None
    return next((name for name, item in evals.items() if item["step"] == step and name != BEFORE), None)


def compare_with_row(
    run: RunFolder, name: str, result: EvalResult, *, changes: Sequence[str], environment: Sequence[str]
) -> str:
    """One sentence: the result equals the row of the run, or by how much it differs on the same prompts, and why.

    Args:
        run: folder of the run that saved the model.
        name: of its evaluation.
        result: of the same weights.
        changes: settings that differ, "eval.temperature: 0.0 -> 0.6".
        environment: what else differs, "device: cuda -> cpu".
    """
    recorded = _by_key(run.read_samples(name))
    found = _by_key(json_value(result.samples))
    shared = sorted(set(recorded) & set(found))
    row = f"the run's {name!r} row"
    if not shared:
        return f"not comparable with {row}: no prompt is in both ({_reasons(changes, environment)})"
    same = all(_outcome(recorded[key]) == _outcome(found[key]) for key in shared)
    if same and not changes:
        if len(shared) == len(recorded) == len(found):
            return f"equals {row}: the same {len(shared)} completions and verdicts"
        return f"equals {row} on the {len(shared)} completions that are in both"
    difference, stderr, count = paired_difference(recorded.values(), found.values())
    if count == 0:
        return f"not comparable with {row}: no prompt has a verdict in both ({_reasons(changes, environment)})"
    change = points(difference, stderr if stderr == stderr else None)  # NaN: one prompt has no error
    return f"differs from {row} by {change} points on {count} prompts; {_reasons(changes, environment)}"


def settings_record(settings: EvalSettings) -> dict[str, Any]:
    """The settings that decide the numbers; when to evaluate and how long is left out."""
    left_out = ("at_start", "every_steps", "time_budget_seconds")
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


def _reasons(changes: Sequence[str], environment: Sequence[str]) -> str:
    told = "; ".join([*changes, *environment])
    return f"changed: {told}" if told else "no setting differs, nor do versions and device"


def _by_key(samples: Sequence[Sample]) -> dict[tuple[int, int], Sample]:
    return {(item["index"], item["sample"]): item for item in samples}


def _outcome(sample: Sample) -> tuple[Any, ...]:
    return tuple(sample[name] for name in _OUTCOME)
