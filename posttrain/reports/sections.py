"""The parts of a report, as Markdown: result, groups, cost, completions. Every text from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.results import Sample, missing_verdicts, paired_difference
from posttrain.reports.markdown import MISSING, cell, duration, escape, number, percent, points, table

Evaluation = Mapping[str, Any]  # one entry of eval.json
Samples = Sequence[Sample]
Key = tuple[int, int]

# A change smaller than this many standard errors is called by that name.
CLEAR_STDERRS = 2.0
MANY_TRUNCATED = 0.2
EXAMPLES_A_KIND = 2

READING = """\
- *Accuracy* is the share of evaluation prompts that the verifier accepts; with several completions per prompt, their
  mean is taken first. Only the verifier's verdict counts, not format or length rewards.
- *pass@k* estimates the share of prompts that at least one of k completions solves, from the n that were sampled:
  1 - C(n - c, k) / C(n, k) for c correct ones (the mean over every choice of k among the n).
- *±* is one standard error over the n prompts, sqrt(Σ(x − mean)² / (n(n − 1))): repeated draws of prompts would fall
  within it about two times in three. It does not cover the spread between training seeds.
- *Change* compares the same prompts before and after one by one, which makes its error smaller than that of two
  separate samples.
- *Cut off* completions reached the token limit without ending. They count by the verifier's verdict on what is there,
  while the accuracy of training rollouts counts them as wrong. *Not scored* ones got no verdict and are left out.
"""


def change(before: Samples | None, after: Samples | None) -> tuple[float | None, float | None, int]:
    """`paired_difference` with None for what is unknown."""
    if not before or not after:
        return None, None, 0
    difference, stderr, count = paired_difference(before, after)
    return _known(difference), _known(stderr), count


def headline(before: Evaluation | None, after: Evaluation | None, difference: tuple[Any, Any, int]) -> str:
    """The outcome in one or two sentences."""
    if after is None:
        if before is None:
            return "There was no evaluation."
        return f"Before training the model solved {percent(before['accuracy'])} of the evaluation prompts."
    if before is None or difference[0] is None:
        return f"After training the model solved {percent(after['accuracy'])} of the evaluation prompts."
    value, stderr, count = difference
    text = (
        f"Before training the model solved {percent(before['accuracy'])} of the evaluation prompts, afterwards "
        f"{percent(after['accuracy'])}: a change of {points(value, stderr)} percentage points on {count} prompts."
    )
    if stderr is not None and abs(value) < CLEAR_STDERRS * stderr:
        text += f" That is less than {CLEAR_STDERRS:.0f} standard errors, so it may be chance."
    return text


def result_table(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    """One row an evaluation; pass@k has columns where some evaluation had several completions per prompt."""
    sizes = pass_at_k_columns([item for _, item in evaluations])
    rows = [
        [
            escape(name),
            percent(item["accuracy"], item["accuracy_stderr"]),
            *pass_at_k_cells(item, sizes),
            _prompts(item),
            number(item["num_samples"]),
            number(item["mean_length"]),
            percent(item["truncated_fraction"]),
            number(item["unscored"]),
        ]
        for name, item in evaluations
    ]
    head = ["", "accuracy", *[f"pass@{k}" for k in sizes], "prompts", "completions", "mean length (tokens)"]
    return table([*head, "cut off", "not scored"], rows)


def pass_at_k_columns(scores: Sequence[Mapping[str, Any]]) -> list[int]:
    """The k above 1 that any of these evaluations or groups reports (pass@1 is the accuracy), in order."""
    return sorted({int(k) for score in scores for k in score.get("pass_at_k") or {}} - {1})


def pass_at_k_cells(score: Mapping[str, Any], sizes: Sequence[int]) -> list[str]:
    """A table cell "56.2 ± 3.1 %" for each k; what the score does not report is marked as missing."""
    found = [(score.get("pass_at_k") or {}).get(str(k)) for k in sizes]
    return [percent(item["value"], item["stderr"]) if item else MISSING for item in found]


def remarks(evaluations: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """What a reader must know to read the table right: partial results, truncation, missing verdicts."""
    lines = []
    for name, item in evaluations:
        if item["partial"]:
            lines.append(
                f"{escape(name)}: **partial**, the time budget ended it after {item['num_prompts']} of "
                f"{item['num_requested']} prompts (a random choice of them)."
            )
        if (item["truncated_fraction"] or 0) > MANY_TRUNCATED:
            lines.append(
                f"{escape(name)}: {percent(item['truncated_fraction'])} of the completions were cut off at the token "
                "limit and could not finish; a larger `eval.max_new_tokens` may show a higher accuracy."
            )
        if item["unscored"]:
            lines.append(f"{escape(name)}: {missing_verdicts(item)}")
        left_out = {k: score["num_left_out"] for k, score in (item.get("pass_at_k") or {}).items()}
        if any(left_out.values()):
            shown = ", ".join(f"{count} for pass@{k}" for k, count in left_out.items() if count)
            lines.append(f"{escape(name)}: prompts with fewer than k verdicts are left out of pass@k: {shown}.")
    return lines


def group_table(columns: Sequence[tuple[str, Evaluation]]) -> str | None:
    """Accuracy of each data group, one column an evaluation; None with fewer than two groups."""
    groups = sorted({group for _, item in columns for group in item["per_group"]})
    if len(groups) < 2:
        return None
    rows = []
    for group in groups:
        scores = [item["per_group"].get(group) for _, item in columns]
        count = max(score["num_scored_prompts"] for score in scores if score)
        cells = [percent(score["accuracy"], score["accuracy_stderr"]) if score else MISSING for score in scores]
        rows.append([escape(group), number(count), *cells])
    return table(["group", "prompts", *[escape(name) for name, _ in columns]], rows)


def cost_table(costs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Cost of each run, one column a run; rows in the order in which they are first named."""
    names = list(dict.fromkeys(name for _, cost in costs for name in cost))
    rows = [[escape(name), *[_cost(name, cost.get(name)) for _, cost in costs]] for name in names]
    return table(["", *[escape(run) or "this run" for run, _ in costs]], rows)


def completions_table(columns: Sequence[tuple[str, Samples]], *, limit: int = 500) -> str | None:
    """A few prompts with the completions of each evaluation side by side; None without completions.

    Args:
        columns: (name, samples) of the evaluations; the first and the last decide which prompts are shown: up to two
            of each kind (wrong then correct, correct then wrong, wrong both times, correct both times), the first in
            the order of the data.
        limit: characters of a prompt or completion shown.
    """
    found = [
        (name, {(item["index"], item["sample"]): item for item in samples}) for name, samples in columns if samples
    ]
    if not found:
        return None
    rows = []
    for key in examples(found[0][1], found[-1][1]):
        first = found[0][1].get(key) or found[-1][1][key]
        asked = cell(prompt_text(first["prompt"]), limit=limit)
        if first.get("answer") not in (None, ""):
            asked += f"<br>*expected:* {cell(first['answer'], limit=limit)}"
        rows.append([asked, *[_completion(samples.get(key), limit) for _, samples in found]])
    text = table(["prompt", *[escape(name) for name, _ in found]], rows)
    # Text reads from the left.
    return text.replace("---:", ":---")


def prompt_text(prompt: Any) -> str:
    """A prompt as plain text: a string as it is, messages as "role: content" lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def verdict(sample: Sample) -> str:
    """ "correct", "wrong" or "not scored", and whether the completion was cut off."""
    word = {True: "correct", False: "wrong", None: "not scored"}[sample["correct"]]
    return f"{word}, cut off" if sample["truncated"] else word


def examples(first: Mapping[Key, Sample], last: Mapping[Key, Sample]) -> list[Key]:
    """(index, sample) of the completions worth showing: up to two of each pair of verdicts, in data order."""
    kinds: dict[tuple[Any, Any], list[Key]] = {}
    for key in sorted(set(first) & set(last)):
        kinds.setdefault((first[key]["correct"], last[key]["correct"]), []).append(key)
    order = [(False, True), (True, False), (False, False), (True, True)]
    order += [kind for kind in kinds if kind not in order]
    return [key for kind in order for key in kinds.get(kind, [])[:EXAMPLES_A_KIND]]


def _completion(sample: Sample | None, limit: int) -> str:
    if sample is None:
        return MISSING
    return f"**{verdict(sample)}**<br>{cell(sample['completion'], limit=limit)}"


def _prompts(item: Evaluation) -> str:
    counted = number(item["num_scored_prompts"])
    return f"{counted} of {number(item['num_requested'])}" if item["partial"] else counted


def _cost(name: str, value: Any) -> str:
    if value is None:
        return MISSING
    if name.endswith("time"):
        return duration(value)
    return number(value) if isinstance(value, int | float) else escape(value)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
