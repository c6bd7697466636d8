"""Trying many inputs in one process that may crash or hang: each gets its outcome, and what follows is tried still."""

from __future__ import annotations

import functools
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError

SECONDS = 20.0  # that an input may take
_MEMORY = 12 << 30  # bytes of address space beyond those of the parent


@dataclass(frozen=True)
class Outcome:
    """How an input ended: "accepted", "refused" (with the user's line), "traceback", "hang" or "crash"."""

    name: str
    kind: str
    told: str
    seconds: float

    @property
    def is_fault(self) -> bool:
        """Whether it ended as no input may."""
        return self.kind in ("traceback", "hang", "crash")


def outcome(name: str, attempt: Callable[[], Any]) -> Outcome:
    """Try one input here. `attempt` returns errors that were found, or raises."""
    begin = time.monotonic()
    try:
        errors = attempt() or []
        told = "\n".join(map(str, errors))
        kind = "refused" if errors else "accepted"
    except PosttrainError as error:
        kind, told = "refused", str(error)
    except BaseException:  # noqa: BLE001 - whatever escapes is what is looked for
        kind, told = "traceback", traceback.format_exc()[-3000:]
    return Outcome(name, kind, told, time.monotonic() - begin)


def survive(names: Sequence[str], attempt: Callable[[str], Any], *, seconds: float = SECONDS) -> list[Outcome]:
    """Outcome of each name, tried in a child of this process; a child that hangs or dies is replaced.

    Args:
        names: of the inputs.
        attempt: tries one, as `outcome` wants it.
        seconds: after which an input hangs.
    """
    done: list[Outcome] = []
    while len(done) < len(names):
        done += _batch(names[len(done) :], attempt, seconds)
    return done


def _batch(names: Sequence[str], attempt: Callable[[str], Any], seconds: float) -> list[Outcome]:
    """Outcomes up to the first one that ended the child, or all."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(names, attempt, writer)
    os.close(writer)
    done: list[Outcome] = []
    begin = time.monotonic()
    with os.fdopen(reader, "rb") as results:
        while len(done) < len(names):
            ready, _, _ = select.select([results], [], [], max(0.0, begin + seconds - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                done.append(Outcome(names[len(done)], "hang", "", time.monotonic() - begin))
                break
            line = results.readline()
            if line.endswith(b"\n"):
                done.append(Outcome(**json.loads(line)))
            else:
                done.append(Outcome(names[len(done)], "crash", "the process died", time.monotonic() - begin))
                break
            begin = time.monotonic()
    os.waitpid(child, 0)
    return done


def _work(names: Sequence[str], attempt: Callable[[str], Any], writer: int) -> None:
    """In the child: try one after the other and hand the outcomes back."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    try:
        with os.fdopen(writer, "wb") as results:
            for name in names:
                results.write(json.dumps(asdict(outcome(name, functools.partial(attempt, name)))).encode() + b"\n")
                results.flush()
    finally:
        os._exit(0)


def told(outcomes: Sequence[Outcome]) -> str:
    """Numbers and, of each fault, name and last line."""
    kinds: dict[str, int] = {}
    for one in outcomes:
        kinds[one.kind] = kinds.get(one.kind, 0) + 1
    faults = [f"{one.kind} {one.name}: {one.told.strip().splitlines()[-1:]}" for one in outcomes if one.is_fault]
    slowest = max(outcomes, key=lambda one: one.seconds)
    head = f"{len(outcomes)} inputs: {kinds}; slowest {slowest.name}: {slowest.seconds:.1f} s"
    return "\n".join([head, *faults])
