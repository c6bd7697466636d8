"""Running a study: one process for each seed, a few at a time, which may be interrupted and called again.

A child is `python -m posttrain.run RECIPE overrides`, so that a study trains exactly as a user does. What is finished
is known from the files the runs leave, never from memory. The study's folder is locked by the parent and, through an
inherited file handle, by its children: a second call cannot write beside children that outlived a killed parent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

import posttrain
from posttrain.errors import ResumeError
from posttrain.reports.records import write_json
from posttrain.reproduce.plan import Plan, SeedRun
from posttrain.reproduce.progress import Display, SeedState
from posttrain.training.folder_lock import locked

TIMES_FILE = "times.json"
_POLL_SECONDS = 0.5
# How a child is stopped: signal, and seconds to wait. Python drops an interrupt that falls into a callback of its
# garbage collection, so it is sent again before force is used.
_STOPS = (
    (signal.SIGINT, 4.0),
    (signal.SIGINT, 4.0),
    (signal.SIGINT, 8.0),
    (signal.SIGTERM, 10.0),
    (signal.SIGKILL, 5.0),
)
_SAVE_TIMES_SECONDS = 10.0
_LOCK_SECONDS = 3.0  # what a call before has killed lets go of the lock a moment after it


class Failed(Exception):
    """A child ended with an error, which has been shown. `seeds` are those that failed."""

    def __init__(self, seeds: list[int]):
        super().__init__(f"failed: seeds {seeds}")
        self.seeds = seeds


@dataclass
class Child:
    """A running process and its log."""

    run: SeedRun
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float = field(default_factory=time.monotonic)


def default_jobs() -> tuple[int, str]:
    """Seeds trained at once, and what they run on: one on an accelerator, one a core on a CPU."""
    if torch.cuda.is_available():
        return 1, torch.cuda.get_device_name()
    return max(1, num_cores()), "cpu"


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def run_study(plan: Plan, *, jobs: int, display: Display) -> None:
    """Run what is not finished.

    Args:
        plan: the study.
        jobs: children at once.
        display: where progress is shown.

    Raises:
        Failed: a child ended with an error. Those beside it have been let to their end; none was started anew.
        ResumeError: children of an earlier call still run, or a finished run has other settings.
        KeyboardInterrupt: the user stopped it; every child has ended and can be continued.
    """
    with _lock(plan.output) as lock:
        states = {run.seed: SeedState(run.seed, tuple(name for name, _, _ in run.stages)) for run in plan.runs}
        for run in plan.runs:
            states[run.seed].done = set(run.finished())
        waiting = [run for run in plan.runs if not states[run.seed].finished()]
        if not waiting:
            return
        with Interrupts() as interrupts, display:
            _Loop(plan, jobs=jobs, lock=lock, display=display, states=states, interrupts=interrupts).run(waiting)


class _Loop:
    """The children of one call. `states` is what the display shows."""

    def __init__(
        self,
        plan: Plan,
        *,
        jobs: int,
        lock: int,
        display: Display,
        states: dict[int, SeedState],
        interrupts: Interrupts,
    ):
        self.plan, self.jobs, self.lock, self.display, self.states = plan, jobs, lock, display, states
        self.interrupts = interrupts
        self.children: list[Child] = []
        self.failed: list[int] = []
        self.times = Times(plan.output)

    def run(self, waiting: list[SeedRun]) -> None:
        self.display.update(self.states)
        try:
            while self.children or (waiting and not self.failed):
                while waiting and not self.failed and len(self.children) < self.jobs:
                    self.start(waiting.pop(0))
                time.sleep(_POLL_SECONDS)
                self.look()
        finally:
            self.stop()
            self.times.save({child.run.seed: child.began for child in self.children})
        if self.failed:
            raise Failed(self.failed)

    def start(self, run: SeedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        log = (run.folder / "log.txt").open("ab")
        command = [sys.executable, "-m", "posttrain.run", str(self.plan.study.recipe), *run.overrides]
        # A child that an interrupt keeps from being noted would train on, with nobody to end it.
        with self.interrupts.held():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children in order
            )
            self.children.append(Child(run, process, log))
        self.states[run.seed].running = True

    def look(self) -> None:
        """Note what the children have finished, and which of them have ended."""
        for child in list(self.children):
            state = self.states[child.run.seed]
            _note_progress(child.run, state)
            code = child.process.poll()
            if code is None:
                continue
            child.log.close()
            self.children.remove(child)
            self.times.add(child.run.seed, child.began)
            state.running = False
            state.done = set(child.run.finished())
            if code != 0 or not state.finished():
                self.failed.append(child.run.seed)
                state.failed = True
                self.display.failure(child.run.seed, code, last_lines(child.run.folder / "log.txt"))
        self.times.save({child.run.seed: child.began for child in self.children}, every=_SAVE_TIMES_SECONDS)
        self.display.update(self.states)

    def stop(self) -> None:
        """End every child: by an interrupt as from the keyboard, then by force, with whatever it has started."""
        with self.interrupts.held(raises=False):
            for sign, patience in _STOPS:
                alive = [child for child in self.children if child.process.poll() is None]
                for child in alive:
                    child.process.send_signal(sign)
                deadline, self.interrupts.noted = time.monotonic() + patience, False
                # Another Ctrl-C hurries it.
                while time.monotonic() < deadline and not self.interrupts.noted:
                    if all(child.process.poll() is not None for child in alive):
                        break
                    time.sleep(0.05)
            for child in self.children:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.log.close()


class Interrupts:
    """Signals that end a study. Inside the context each raises KeyboardInterrupt, as Ctrl-C does, but while `held`.

    Attributes:
        noted: whether one came while they were held.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.noted, self._is_held = False, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {sign: signal.signal(sign, self._take) for sign in self.SIGNALS}
        return self

    def __exit__(self, *raised: object) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._is_held:
            raise KeyboardInterrupt
        self.noted = True

    @contextmanager
    def held(self, *, raises: bool = True) -> Iterator[None]:
        """A signal that comes inside is noted, and with `raises` it interrupts at the end."""
        self._is_held, self.noted = True, False
        try:
            yield
        finally:
            self._is_held = False
        if raises and self.noted:
            raise KeyboardInterrupt


class Times:
    """Seconds a study has taken over all calls: as a user waits (`wall`), and of each seed's process.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path):
        self.path = folder / TIMES_FILE
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.wall = float(found.get("wall_seconds", 0.0))
        self.seeds: dict[str, float] = dict(found.get("seed_seconds", {}))
        self.began = self.saved = time.monotonic()

    def add(self, seed: int, began: float) -> None:
        """Add the time of a process that has ended."""
        self.seeds[str(seed)] = self.seeds.get(str(seed), 0.0) + time.monotonic() - began

    def save(self, running: dict[int, float], *, every: float = 0.0) -> None:
        """Write the times, with those of processes that still run (seed -> beginning), unless just done."""
        now = time.monotonic()
        if now - self.saved < every:
            return
        self.saved = now
        seeds = dict(self.seeds)
        for seed, began in running.items():
            seeds[str(seed)] = seeds.get(str(seed), 0.0) + now - began
        write_json(self.path, {"wall_seconds": self.wall + now - self.began, "seed_seconds": seeds})


def last_lines(path: Path, count: int = 15) -> list[str]:
    """The end of a log, empty lines left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line.rstrip() for line in lines if line.strip()][-count:]


def _note_progress(run: SeedRun, state: SeedState) -> None:
    for name in state.stages:
        if name not in state.done and (run.stage_folder(name) / "finished.json").exists():
            state.done.add(name)
    current = next((name for name in state.stages if name not in state.done), None)
    state.step = _last_step(run.stage_folder(current) / "metrics.jsonl") if current else 0


def _last_step(path: Path) -> int:
    """Step of the last whole line of a metrics file; 0 if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):
        return 0  # no file yet, or a line longer than what was read; the next look will tell


def _environment() -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():
        # One thread a child: the numbers then do not depend on how many run beside it.
        environment["OMP_NUM_THREADS"] = "1"
    source = Path(posttrain.__file__).parents[1]
    if "site-packages" not in source.parts:  # a source tree that is not installed
        paths = [str(source), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    with locked(folder / ".lock", seconds=_LOCK_SECONDS) as handle:
        if handle is None:
            raise ResumeError(
                "another reproduction, or what it started, still writes here",
                where=str(folder),
                fix="Wait for it to end, or choose another folder with --output",
            )
        yield handle
