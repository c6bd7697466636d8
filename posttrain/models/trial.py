"""Trying what a model's files make this process do, in a child of it that may take its time and memory, and crash.

A chat template is a program: it can loop for hours, nest calls without end, or write gigabytes. jinja2's sandbox keeps
it from files and from a single range of more than 100,000 items, and from none of these.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable

SECONDS = 3  # of computing
_WALL_SECONDS = 10.0
_BYTES = 1 << 30  # on top of what the process has
_TOO_MUCH, _FAILED = 3, 4


def trouble(attempt: Callable[[], int], *, most: int) -> str | None:
    """What is wrong with a call, if it does not end soon and soundly; None if it does, or raises an exception.

    Args:
        attempt: returns how much it made, such as characters; called in a child of this process.
        most: that it may make.

    Returns:
        "does not come to an end", "needs more than 1 GB of memory", "writes more than ...", "ends the process".
    """
    child = os.fork()
    if child == 0:
        _try(attempt, most)
    status = _waited(child)
    if status is None:
        return None  # it waits rather than computes, as a fork of several threads may: nothing is known
    if os.WIFSIGNALED(status):
        is_slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return f"does not come to an end within {SECONDS} s" if is_slow else "ends the process"
    return {_TOO_MUCH: f"writes more than {most:,} characters", _FAILED: "needs more than 1 GB of memory"}.get(
        os.WEXITSTATUS(status)
    )


def _waited(child: int) -> int | None:
    """Exit status of a child; None if it had to be stopped although it did not compute."""
    end = time.monotonic() + _WALL_SECONDS
    pause = 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
        pause = min(0.05, 2 * pause)
    used = _computed(child)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status if used > 0.1 * _WALL_SECONDS else None


def _computed(child: int) -> float:
    """Seconds that a process has computed."""
    try:
        with open(f"/proc/{child}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _try(attempt: Callable[[], int], most: int) -> None:
    """In the child."""
    code = 0
    try:
        faulthandler.disable()
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        with open("/proc/self/statm") as file:
            bound = int(file.read().split()[0]) * resource.getpagesize() + _BYTES
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        code = _TOO_MUCH if attempt() > most else 0
    except MemoryError:
        code = _FAILED
    except BaseException:  # noqa: BLE001 - an exception is told where the call is made in earnest
        code = 0
    finally:
        os._exit(code)
