"""What there is and what was measured, for readers: docs/methods.md, docs/results.md, the README's list of methods.

Made from the declarations and the RESULTS.json files; the sentences of a study stand beside its recipes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from posttrain import registry
from posttrain.errors import ConfigError
from posttrain.reports.markdown import MISSING, escape, table
from posttrain.reports.records import write_atomic
from posttrain.reproduce.claims import MAIN, load_claims, studies_in, study_file
from posttrain.reproduce.decision import WORDS
from posttrain.reproduce.recipe_index import recipes_page
from posttrain.reproduce.results import FILE, ClaimResult, ResultsFile, StudyResult, read_results, source_remarks

PAGE, METHODS_PAGE = Path("docs", "results.md"), Path("docs", "methods.md")
METHODS_BEGIN, METHODS_END = "<!-- methods -->\n", "<!-- /methods -->"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
HEADER = ("study", "setting", *WORDS.values(), "seeds", "minutes")
NOT_MEASURED = "not measured yet"
_INTRODUCTION = """# What was measured

One line a study: how many of its claims held, did not hold or stayed undecided at small scale, over seeds, with the
claims and margins written before the runs. The method's name leads to the sentences with their intervals. `posttrain
reproduce KEY` runs a study again; `posttrain reproduce --ledger` writes this page.

"""


def results_page(root: str | Path) -> str:
    """docs/results.md: a line for each study, and for each method without one.

    Args:
        root: folder that holds `recipes/`.

    Raises:
        DataError: a results file violates its schema.
    """
    recipes = Path(root) / "recipes"
    found = {key: read_results(recipes / key / FILE) for key in registry.METHODS}
    rows = [row for key in registry.METHODS for row in _rows(key, recipes / key, found)]
    return _INTRODUCTION + table(HEADER, rows).replace(":--- | ---:", ":--- | :---", 1) + "\n"


def methods_page() -> str:
    """docs/methods.md: every method with its paper and what it runs with."""
    lines = ["| method | kind | what it does | paper | runs with |", "| --- | --- | --- | --- | --- |"]
    for entry in registry.METHODS.values():
        paper = f"[{entry.paper.title} ({entry.paper.year})](https://arxiv.org/abs/{entry.paper.arxiv})"
        features = ", ".join(name for name in registry.FEATURES if name in entry.supports)
        name = f"[`{entry.key}`](../recipes/{entry.key}/README.md)"
        lines.append(f"| {name} | {entry.kind} | {entry.summary} | {paper} | {features} |")
    return "# Methods\n\n" + "\n".join(lines) + "\n"


def method_lines(root: str | Path) -> str:
    """A line a method for the README: what it does, and how many claims of its studies held."""
    lines = []
    for key, entry in registry.METHODS.items():
        results = read_results(Path(root) / "recipes" / key / FILE)
        claims = [item.decision.held for study in results.studies.values() for item in study.claims] if results else []
        counts = Counter(WORDS[held] for held in claims)
        status = ", ".join(f"{counts[word]} {word}" for word in WORDS.values() if counts[word]) or NOT_MEASURED
        lines.append(f"- [`{key}`](recipes/{key}/README.md) – {entry.summary} – {status}")
    return "\n".join(lines)


def study_sentences(folder: str | Path) -> str | None:
    """What the studies of a method claimed and found, for its README; None without results.

    Args:
        folder: of its recipes.
    """
    results = read_results(Path(folder) / FILE)
    return None if results is None else "\n\n".join(map(_sentences, results.studies.values()))


def written_pages(root: str | Path) -> dict[Path, str]:
    """File -> text of every page that is made from declarations and results.

    Raises:
        ConfigError: the README of a method with results has no block for them, or a table lacks a recipe.
    """
    root = Path(root)
    written = {root / PAGE: results_page(root), root / METHODS_PAGE: methods_page()}
    if (root / "recipes" / "README.md").exists():
        written[root / "recipes" / "README.md"] = recipes_page(root)
    if (readme := root / "README.md").exists():
        written[readme] = _with_block(readme, method_lines(root), METHODS_BEGIN, METHODS_END)
    for key in registry.METHODS:
        if (text := study_sentences(root / "recipes" / key)) is not None:
            readme = root / "recipes" / key / "README.md"
            written[readme] = _with_block(readme, text)
    return written


def write_ledger(root: str | Path) -> list[Path]:
    """Bring these pages up to date; returns what changed. Raises as `written_pages`."""
    pages = written_pages(root)
    changed = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_atomic(path, pages[path])
    return changed


def _with_block(readme: Path, text: str, begin: str = BEGIN, end: str = END) -> str:
    before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if begin not in before or end not in before:
        fix = f"Add a line {begin.strip()} and below it {end.strip()}"
        raise ConfigError("there is no block for results", where=str(readme), fix=fix)
    head, rest = before.split(begin, 1)
    return head + begin + text + "\n" + end + rest.split(end, 1)[1]


def _rows(key: str, folder: Path, found: dict[str, ResultsFile | None]) -> list[list[str]]:
    results = found[key]
    measured = dict(results.studies) if results else {}
    rows = []
    for study in dict.fromkeys([*studies_in(folder), *measured]):
        claims = folder / study_file(study)
        title = load_claims(claims).block.title if claims.exists() else None
        if study in measured:
            rows.append(_measured(key, measured[study], title))
        else:
            block = load_claims(claims).block
            shown = [_method(key, study), escape(title or NOT_MEASURED), *_none(), str(len(block.seeds)), MISSING]
            rows.append(shown)
    return rows or [[_method(key, MAIN), _without_study(key, found), *_none(), MISSING, MISSING]]


def _none() -> list[str]:
    return [MISSING] * len(WORDS)


def _measured(key: str, result: StudyResult, title: str | None) -> list[str]:
    counts = Counter(WORDS[item.decision.held] for item in result.claims)
    remarks = "; ".join(source_remarks(result.environments))
    shown = escape(title or result.setting.partition(",")[0]) + (f" ({remarks})" if remarks else "")
    numbers = [str(counts[word]) if counts[word] else MISSING for word in WORDS.values()]
    return [_method(key, result.study), shown, *numbers, str(len(result.seeds)), f"{result.minutes.wall:.0f}"]


def _sentences(result: StudyResult) -> str:
    """A study: the paper's claim, our setting, each claim with its verdict and numbers."""
    minutes = f"{result.minutes.wall:.0f} minutes on {result.hardware['cores']} cores"
    if result.minutes.wall > result.minutes.limit:
        minutes += f" (the limit was {result.minutes.limit})"
    lines = [
        f"**Study {escape(result.study)}** ([{FILE}]({FILE}), {len(result.seeds)} seeds, {minutes})",
        f"The paper: {escape(result.paper_claim)}",
        f"Here: {escape(result.setting)}",
        "\n".join(f"- {_claim_text(item)}" for item in result.claims),
    ]
    return "\n\n".join(lines)


def _claim_text(item: ClaimResult) -> str:
    """ "HPT solves more than RL alone. **Held**: hpt minus grpo is +12.3 points (...)." """
    verdict, _, numbers = item.decision.sentence.partition(":")
    return f"{escape(item.definition['statement'])} **{escape(verdict)}**: {escape(numbers.strip())}"


def _without_study(key: str, found: dict[str, ResultsFile | None]) -> str:
    """A method that no study is about: perhaps it is a baseline of another's."""
    used = [
        other
        for other, results in found.items()
        if results and any(variant.trainer == key for study in results.studies.values() for variant in study.variants)
    ]
    if not used:
        return NOT_MEASURED
    return f"a baseline in {', '.join(f'`{other}`' for other in used)}; its own paper's claim is not tested"


def _method(key: str, study: str) -> str:
    name = f"[`{key}`](../recipes/{key}/README.md)"
    return name if study == MAIN else f"{name}, {escape(study)}"
