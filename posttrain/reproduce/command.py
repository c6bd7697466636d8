"""`posttrain reproduce KEY`: plan, run, decide, write; and the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import posttrain
from posttrain.console import quiet_libraries
from posttrain.errors import ConfigError
from posttrain.reports.markdown import duration
from posttrain.reproduce.claims import MAIN
from posttrain.reproduce.collect import collect
from posttrain.reproduce.decision import WORDS
from posttrain.reproduce.ledger import write_ledger
from posttrain.reproduce.plan import Plan, find_study, make_plan
from posttrain.reproduce.progress import Display
from posttrain.reproduce.report import write_report
from posttrain.reproduce.results import FILE, StudyResult, read_results, write_results
from posttrain.reproduce.runner import Failed, default_jobs, run_study

if TYPE_CHECKING:
    from rich.console import Console


def source_root(key: str | None = None) -> Path:
    """The folder that holds `recipes/`: the current one, or the source tree of this package.

    Raises:
        ConfigError: neither has recipes of this method.
    """
    below = Path("recipes") / key if key else Path("recipes")
    for root in (Path.cwd(), Path(posttrain.__file__).resolve().parents[1]):
        if (root / below).is_dir():
            return root
    raise ConfigError("no recipes here", where=str(below), fix="Call it in a clone of posttrain, or in its copy")


def reproduce(
    key: str,
    overrides: Sequence[str] = (),
    *,
    study: str | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    output: str | Path | None = None,
    dry_run: bool = False,
    console: Console,
) -> bool:
    """Run a study of a method, or the rest of it, and write its results.

    Args:
        key: the method.
        overrides: dotted overrides of the recipe; results are then written to the output folder alone.
        study: name; default "main", or the only one.
        seeds: default: those of the claims file; other ones count as a change, as overrides do.
        jobs: seeds trained at once; default one for each CPU core, or one with a GPU.
        output: default `runs/reproduce/<key>/<study>`.
        dry_run: say what would be done, and stop.
        console: of rich.

    Returns:
        False if a run failed; its log was shown.
    """
    quiet_libraries()
    root = source_root(key)
    claims = find_study(key, study, root)
    name = claims.stem.removeprefix("claims").removeprefix("_") or MAIN
    folder = Path(output) if output is not None else Path("runs") / "reproduce" / key / name
    plan = make_plan(key, claims, seeds=seeds, output=folder, overrides=overrides)
    found_jobs, device = default_jobs()
    jobs = min(jobs or found_jobs, len(plan.runs))
    describe(plan, root=root, jobs=jobs, device=device, console=console)
    if dry_run:
        return True
    try:
        run_study(plan, jobs=jobs, display=Display(console, plan.steps))
    except Failed as failed:
        which = ", ".join(map(str, failed.seeds))
        say(console, f"failed: seed {which}. Finished stages are kept; the same command continues. Logs: {folder}")
        return False
    except KeyboardInterrupt:
        say(console, "stopped; the same command continues")
        raise
    _finish(plan, root=root, jobs=jobs, device=device, console=console)
    return True


def parse_seeds(text: str) -> list[int]:
    """ "0,1" -> [0, 1].

    Raises:
        ConfigError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError("not a list of seeds", where="--seeds", got=text, allowed="different numbers, e.g. 0,1,2")
    return [int(part) for part in parts]


def refresh_ledger(console: Console) -> None:
    """Rewrite the pages of methods and results, and the READMEs' blocks, from declarations and results files."""
    root = source_root()
    changed = write_ledger(root)
    for path in changed:
        say(console, f"{path.relative_to(root)}: rewritten")
    if not changed:
        say(console, "docs/results.md, docs/methods.md and the READMEs are up to date")


def describe(plan: Plan, *, root: Path, jobs: int, device: str, console: Console) -> None:
    """Say what will be run, and how long it took where it was measured."""
    study = plan.study
    lines = [f"{plan.key}, study {study.name}: {study.block.paper_claim}", f"  here: {study.block.setting}"]
    if plan.preparation:
        shared = ", ".join(f"{stage.name} ({stage.trainer}, {stage.steps} steps)" for stage in plan.preparation)
        lines.append(f"  shared preparation: {shared}")
    for variant in plan.variants:
        flow = " then ".join(stage.trainer for stage in variant.own) or "no training"
        reason = study.block.unequal.get(variant.stage)
        lines.append(
            f"  variant {variant.label}: {flow}, {variant.amount_text()}{f' (unequal: {reason})' if reason else ''}"
        )
    lines += [f"  claim {claim.name}: {claim.statement}" for claim in study.claims]
    seeds, stages = [run.seed for run in plan.runs], len(plan.runs[0].stages)
    steps = len(seeds) * sum(plan.steps.values())
    lines.append(
        f"  {len(seeds)} runs (seeds {', '.join(map(str, seeds))}) of {stages} stages, {steps} optimizer steps, "
        f"{jobs} at once on {device}; results in {plan.output}"
    )
    before = read_results(root / "recipes" / plan.key / FILE)
    known = before.studies.get(study.name) if before else None
    if known is not None:
        text = f"{known.minutes.wall:g} minutes on {known.hardware['cores']} cores of {known.hardware['cpu']}"
        lines.append(f"  it took {text}, {known.minutes.jobs} at once")
    else:
        lines.append(f"  its time is not measured yet; it should be at most {study.block.minutes_limit} minutes")
    for line in lines:
        say(console, line)


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _finish(plan: Plan, *, root: Path, jobs: int, device: str, console: Console) -> None:
    result = collect(plan, jobs=jobs, device=device)
    own = plan.output / FILE
    own.unlink(missing_ok=True)  # of an earlier call, perhaps in an older form
    write_results(own, plan.key, result)
    report = write_report(plan, result)
    for item in result.claims:
        say(console, f"{WORDS[item.decision.held]}: {item.definition['statement']} {item.decision.sentence}")
    _say_time(result, console)
    say(console, f"report: {report}")
    if result.changed:
        say(console, f"run with changes ({', '.join(result.changed)}), so the results are in {own} alone")
        return
    shipped = write_results(root / "recipes" / plan.key / FILE, plan.key, result)
    where = shipped.relative_to(root) if root == Path.cwd() else shipped
    say(console, f"results: {where}; `posttrain reproduce --ledger` brings them into docs/results.md")


def _say_time(result: StudyResult, console: Console) -> None:
    wall, limit = result.minutes.wall, result.minutes.limit
    text = f"time: {duration(60 * wall)}"
    if wall > limit:
        text += f", more than the {math.floor(limit)} minutes that claims.yaml states"
    say(console, text)
