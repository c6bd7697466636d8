"""The one training main: load, check, train stage by stage, compare.

`posttrain train R` calls `run`; several processes call it through `accelerate launch -m posttrain.run R`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from posttrain.console import is_main_process, leave_group, quiet_libraries, say, show_error
from posttrain.errors import ConfigError, PosttrainError, ResumeError, SupportError
from posttrain.stage_run import Outcome, Stage

# Seconds that other ranks leave to rank 0 to tell a mistake which all of them made.
_PATIENCE = 30.0
_GRACE = 2.0  # the same after SIGTERM, where a scheduler waits for all to end
# What gloo and NCCL say in a process whose peer has gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


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
    from rich.console import Console

    from posttrain.config.checks import check
    from posttrain.config.loader import load
    from posttrain.config.stages import resolve_stages

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
    from posttrain.folder_lock import only_run

    return only_run(folder, say=say) if is_main_process() else nullcontext()


@contextmanager
def _own_told(folder: Any) -> Iterator[None]:
    """Have a mistake that only this rank meets named with the rank; tell no room on the disk, and Ctrl-C, as such."""
    from posttrain.resuming import no_room

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


def _leave_at_once(status: int) -> None:
    """End this process where the others may not be in step: torch 2.13's gloo threads can abort a normal exit."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().show_cursor(True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _show_own(error: PosttrainError) -> None:
    """Name a mistake in the rows of a rank other than 0, which rank 0 may never meet. Settings are the same on all."""
    is_everywhere = error.is_shared or isinstance(error, ConfigError | SupportError | ResumeError)
    if not is_main_process() and not is_everywhere:
        _tell_with_rank(error)


def _tell_with_rank(error: PosttrainError) -> None:
    error.is_told = True
    sys.stderr.write(f"rank {os.environ['RANK']}: error: {error}\n")


def _compare(config: Any, done: dict[str, Outcome]) -> None:
    """Report on the stages that were evaluated, those with the same parent beside each other."""
    from posttrain.config.stages import resolve_stages
    from posttrain.evaluation.arms import Arm
    from posttrain.evaluation.comparison import Comparison
    from posttrain.evaluation.comparison_report import write_comparison

    parents = {name: parent for name, parent, _ in resolve_stages(config)}
    groups: dict[str | None, list[str]] = {}
    for name, outcome in done.items():
        if outcome.after is not None:
            groups.setdefault(parents[name], []).append(name)
    compared = max(groups.values(), key=len, default=[])
    if len(compared) > 1:
        arms = tuple(Arm.of(name, done[name].folder) for name in compared)
        page = write_comparison(str(config.trainer.output_dir), Comparison(arms))
        say(f"report: {page.with_name('REPORT.md')}, and the same as one page: {page}")


@contextmanager
def _told_by_launcher() -> Iterator[None]:
    """Have the first unexpected error of several processes stand last: the launcher ends its report with it.

    A process that only lost the connection to another one says that in a line and leaves the cause to the one that
    knows it, or to the launcher where it was killed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST):
            sys.stderr.write(
                f"rank {os.environ['RANK']}: another process of this run ended; the cause is told below\n"
            )
            sys.stderr.flush()
            time.sleep(_PATIENCE)  # the launcher, which ends this process, takes the first to leave for the cause
            _leave_at_once(1)
        get_error_handler().record_exception(error)
        raise


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.run RECIPE [block.key=value ...]`.

    Returns the exit status: 2 after a user's mistake, told in one line each, 143 after SIGTERM, 130 after Ctrl-C.
    """
    from posttrain.optional import explains_imports

    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        sys.stderr.write("usage: python -m posttrain.run RECIPE [block.key=value ...]\n")
        return 2
    try:
        with _told_by_launcher(), explains_imports():
            run(arguments[0], arguments[1:])
    except PosttrainError as error:
        if is_main_process():
            show_error(error)
        elif not error.is_told:
            # Rank 0 tells it and leaves, and the launcher then ends this process. To leave first would end rank 0.
            is_request = error.exit_status != PosttrainError.exit_status  # a stop that was asked for: told by rank 0
            time.sleep(_GRACE if is_request else _PATIENCE)
            if not is_request:
                _tell_with_rank(error)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave_at_once(error.exit_status)
        return error.exit_status
    except KeyboardInterrupt:
        _leave_at_once(128 + signal.SIGINT)
    leave_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
