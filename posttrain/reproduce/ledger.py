"""The README's ledger: what each paper claims and what was measured here, made from the RESULTS.json files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from posttrain import registry
from posttrain.errors import ConfigError
from posttrain.reports.markdown import MISSING, escape
from posttrain.reports.records import write_atomic
from posttrain.reproduce.claims import MAIN, load_claims, studies_in, study_file
from posttrain.reproduce.decision import WORDS
from posttrain.reproduce.results import FILE, ClaimResult, ResultsFile, StudyResult, read_results, source_remarks

BEGIN, END = "<!-- ledger -->\n", "\n<!-- /ledger -->"
HEADER = ("method", "paper's claim", "what we measured", "seeds", "minutes", "status")
NOT_MEASURED = "not measured yet"


def ledger_table(root: str | Path) -> str:
    """The ledger in Markdown: a row for each study, and for each method without one.

    Args:
        root: folder that holds `recipes/`.

    Raises:
        DataError: a results file violates its schema.
    """
    recipes = Path(root) / "recipes"
    found = {key: read_results(recipes / key / FILE) for key in registry.METHODS}
    lines = ["| " + " | ".join(HEADER) + " |", "| --- | --- | --- | --- | --- | --- |"]
    for key in registry.METHODS:
        for row in _rows(key, recipes / key, found):
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def write_ledger(root: str | Path) -> bool:
    """Bring the README's block up to date; returns whether it changed.

    Raises:
        ConfigError: the README has no block for it.
    """
    readme = Path(root) / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if BEGIN not in text or END not in text:
        fix = f"Add a line {BEGIN.strip()} and below it {END.strip()}"
        raise ConfigError("there is no ledger block", where=str(readme), fix=fix)
    head, rest = text.split(BEGIN, 1)
    new = head + BEGIN + ledger_table(root) + END + rest.split(END, 1)[1]
    if new == text:
        return False
    write_atomic(readme, new)
    return True


def _rows(key: str, folder: Path, found: dict[str, ResultsFile | None]) -> list[list[str]]:
    results = found[key]
    measured = dict(results.studies) if results else {}
    rows = []
    for study in dict.fromkeys([*studies_in(folder), *measured]):
        rows.append(_measured(key, measured[study]) if study in measured else _planned(key, folder, study))
    return rows or [_without_study(key, found)]


def _measured(key: str, result: StudyResult) -> list[str]:
    minutes = f"{result.minutes.wall:.0f} ({result.hardware['cores']} cores)"
    if result.minutes.wall > result.minutes.limit:
        minutes += f", limit {result.minutes.limit}"
    claims = "<br>".join(_claim_text(item) for item in result.claims)
    counts = Counter(WORDS[item.decision.held] for item in result.claims)
    status = ", ".join(f"{counts[word]} {word}" for word in WORDS.values() if counts[word])
    if len(result.claims) == 1:
        status = next(iter(counts))
    status = "; ".join([status, *source_remarks(result.environments)])
    return [
        _method(key, result.study, FILE),
        escape(result.paper_claim),
        f"{escape(result.setting)}<br>{claims}",
        str(len(result.seeds)),
        minutes,
        status,
    ]


def _claim_text(item: ClaimResult) -> str:
    """ "HPT solves more than RL alone. **Held**: hpt minus grpo is +12.3 points (...)." """
    verdict, _, numbers = item.decision.sentence.partition(":")
    return f"{escape(item.definition['statement'])} **{escape(verdict)}**: {escape(numbers.strip())}"


def _planned(key: str, folder: Path, study: str) -> list[str]:
    path = folder / study_file(study)
    block = load_claims(path).block
    seeds = str(len(block.seeds))
    return [_method(key, study, path.name), escape(block.paper_claim), MISSING, seeds, MISSING, NOT_MEASURED]


def _without_study(key: str, found: dict[str, ResultsFile | None]) -> list[str]:
    """A method that no study is about: perhaps it is a baseline of another's."""
    used = [
        other
        for other, results in found.items()
        if results and any(arm.trainer == key for study in results.studies.values() for arm in study.arms)
    ]
    what = (
        f"an arm in {', '.join(f'`{other}`' for other in used)}; its own paper's claim is not tested" if used else ""
    )
    return [_method(key, MAIN, "README.md"), MISSING, what or MISSING, MISSING, MISSING, NOT_MEASURED]


def _method(key: str, study: str, file: str) -> str:
    name = f"[`{key}`](recipes/{key}/{file})"
    return name if study == MAIN else f"{name}, {escape(study)}"
