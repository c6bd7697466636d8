"""One run at a time in a folder: two would write over each other's checkpoints.

The lock is the system's, so it ends with the process that holds it, however that ends. Who holds it stands beside it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.errors import ResumeError

LOCK_FILE, OWNER_FILE = ".run.lock", ".run.owner.json"
# A process that a killed run has started may hold the lock a moment longer.
_SECONDS = 5.0


@contextmanager
def only_run(folder: Path, *, say: Callable[[str], None] = print) -> Iterator[None]:
    """Inside, no other run writes to the folder; for the main process.

    Args:
        folder: of the run, made if it is missing.
        say: is told of a run that ended without letting go.

    Raises:
        ResumeError: another run holds it; says which process on which host, and since when.
    """
    with locked(folder / LOCK_FILE, seconds=_SECONDS, say=say) as handle:
        if handle is None:
            raise ResumeError(
                "another run writes to this folder",
                where=str(folder),
                got=_owner(folder),
                fix="Wait for it to end or stop it, or choose another trainer.output_dir",
            )
        if (owner := _owner(folder)) is not None:
            say(f"{folder}: {owner} ended here without cleaning up; going on from what it left")
        (folder / OWNER_FILE).write_text(json.dumps(_own()), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):  # the disk may have become read-only, which is told by what met it first
                (folder / OWNER_FILE).unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, seconds: float, say: Callable[[str], None] = print) -> Iterator[int | None]:
    """Hold the lock of a file, which is made with its folder.

    Args:
        path: of the file. seconds: to wait for whoever holds it. say: is told where the file system has no locks.

    Yields:
        The handle, which children may inherit to hold the lock with this process; None if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _opened(path)
    try:
        yield handle if _is_locked(handle, path.parent, seconds, say) else None
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """A handle for the lock, for reading where that will do: one for writing keeps a disk from becoming read-only."""
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError as problem:
        if problem.errno == errno.EBADF:  # NFS locks only what is open for writing
            os.close(handle)
            return os.open(path, os.O_RDWR)
    return handle


def _is_locked(handle: int, folder: Path, seconds: float, say: Callable[[str], None]) -> bool:
    """Whether the lock was had in this time, or there are none on this file system, which is said."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except OSError:
            say(f"warning: {folder} cannot be locked, so nothing keeps a second run from writing there")
            return True


def _own() -> dict[str, Any]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since}


def _owner(folder: Path) -> str | None:
    """Who holds the folder, or held it and was killed; None if nobody says so."""
    try:
        values = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return f"process {values['process']} on {values['host']} since {values['since']}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "a run that did not say which"
