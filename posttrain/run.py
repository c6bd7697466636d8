"""The one training main: load, check, train stage by stage, compare.

`posttrain train R` calls `run`; several processes call it through `accelerate launch -m posttrain.run R`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.config.loader import load
from posttrain.config.stages import resolve_stages
from posttrain.console import exit_status, is_main_process, quiet_libraries, say, tell_with_rank
from posttrain.errors import ConfigError, PosttrainError, ResumeError, SupportError
from posttrain.preflight.check import check
from posttrain.reports.comparison import Comparison
from posttrain.reports.comparison_report import write_comparison
from posttrain.reports.variants import Variant
from posttrain.training.folder_lock import only_run
from posttrain.training.resuming import no_room
from posttrain.training.stage import Outcome, Stage


def run(recipe: str | Path, overrides: list[str] | None = None) -> list[Outcome]:
    """Train what a recipe describes, stage by stage; stages that an earlier call has finished are not repeated.

    Args:
        recipe: path of the YAML file.
        overrides: "block.key=value" strings that replace recipe values.

    Returns:
        One `Outcome`, or one for each stage, in order; the same on every rank.

    Raises:
        PosttrainError: anything a user can cause. Nothing was trained if it comes from the checks.
    """
    config = load(recipe, overrides or [])
    quiet_libraries()
    report = check(config, world_size=int(os.environ.get("WORLD_SIZE", "1")), will_train=True)
    if is_main_process() and report.ok:  # errors are shown once, by whoever called
        report.show(Console() if sys.stdout.isatty() else Console(width=200))
    report.raise_if_failed()
    done: dict[str, Outcome] = {}
    with _alone(Path(str(config.trainer.output_dir))):
        for name, parent, stage in resolve_stages(config):
            with _own_told(stage.trainer.output_dir):
                start = done[parent].model if parent else None
                named = stage.stage.reference_from if stage.stage is not None else None
                reference = done[named].model if named in done else named
                done[name] = Stage(stage, name=name, parent=start, reference=reference).run()
        if config.stages is not None and is_main_process():
            _compare(config, done)
    return list(done.values())


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs out of the folder, on the main process."""
    return only_run(folder, say=say) if is_main_process() else nullcontext()


@contextmanager
def _own_told(folder: Any) -> Iterator[None]:
    """Have a mistake that only this rank meets named with the rank; tell no room on the disk, and Ctrl-C, as such."""
    try:
        yield
    except PosttrainError as error:
        _show_own(error)
        raise
    except OSError as problem:
        told = no_room(problem, folder)
        if told is None:
            raise
        _show_own(told)
        raise told from problem
    except KeyboardInterrupt:
        if is_main_process():
            sys.stderr.write(f"left by Ctrl-C; what is complete stays in {folder}\n")
        raise


def _show_own(error: PosttrainError) -> None:
    """Name a mistake in the rows of a rank other than 0, which rank 0 may never meet. Settings are the same on all."""
    is_everywhere = error.is_shared or isinstance(error, ConfigError | SupportError | ResumeError)
    if not is_main_process() and not is_everywhere:
        tell_with_rank(error)


def _compare(config: Any, done: dict[str, Outcome]) -> None:
    """Report on the stages that were evaluated, those with the same parent beside each other."""
    parents = {name: parent for name, parent, _ in resolve_stages(config)}
    groups: dict[str | None, list[str]] = {}
    for name, outcome in done.items():
        if outcome.after is not None:
            groups.setdefault(parents[name], []).append(name)
    compared = max(groups.values(), key=len, default=[])
    if len(compared) > 1:
        variants = tuple(Variant.of(name, done[name].folder) for name in compared)
        page = write_comparison(str(config.trainer.output_dir), Comparison(variants))
        say(f"report: {page.with_name('REPORT.md')}, and the same as one page: {page}")


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.run RECIPE [block.key=value ...]`; returns the exit status, see `console.exit_status`."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        sys.stderr.write("usage: python -m posttrain.run RECIPE [block.key=value ...]\n")
        return 2
    return exit_status(lambda: run(arguments[0], arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
